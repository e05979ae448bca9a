"""Asking a causal LM: greedy answers to prompts, and how probable it finds given ones; batched, spread over ranks.

The loop is our own. What prompts share at their beginning runs once an evaluation (prefix.py), a batch's rows leave it
as they finish and others take their place (cached.py, rows.py), and given answers are scored on the keys and values
that their prompt has left. `transformers`' continuous batching (5.23) shares prefixes in whole pages of its cache, puts
all rows into one with a mask that is quadratic in their tokens on a CPU, and cannot keep the ranks of ZeRO-3 in step:
at its best setting it gave 2.2 times as many answers per CPU second as `model.generate` where this gives 5 to 6.

Shares of the prompts are cut before they are dealt out, so that a batch, and with it every answer, is the same on one
rank and on eight.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from anit_ds.adversarial.causal import base_of
from anit_ds.errors import InputError
from anit_ds.evaluation import plain
from anit_ds.evaluation.cached import CachedLM, why_not_cached
from anit_ds.evaluation.constrained import Bytes, Constraint
from anit_ds.evaluation.prefix import Prefixes, shared_prefixes
from anit_ds.evaluation.questions import Ending, Interrupted, Question, Reply, evaluating, in_order
from anit_ds.evaluation.rows import Rows
from anit_ds.evaluation.trie import Trie
from anit_ds.ranks import distributed

logger = logging.getLogger(__name__)

# Batches' worth of prompts that one rank takes at a time, and among which a batch is filled up again.
_BATCHES_OF_A_SHARE = 4
# For each row of a batch, given answers scored in one pass: how many, and how many tokens of them.
_ANSWERS_OF_A_ROW, _TOKENS_OF_A_ROW = 4, 32

_said: set[str] = set()


@torch.no_grad()
def ask(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    one_line: bool = False,
    batch_size: int = 16,
    progress: str | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """A reply to each question, in their order, on every rank.

    A greedy answer stops at EOS, if `one_line` at a line's end too, or after max_new_tokens; with 0 there is none. Up
    to batch_size prompts are in a pass. Dropout is off; the model's mode is restored. Under ZeRO-3 all ranks must call
    this together. `progress` names a bar on rank 0. A model that does not keep plain keys and values is asked with
    `model.generate`.

    `heartbeat` is called after every pass. It may raise Interrupted on one rank (under ZeRO-3 on all after the same
    pass), which then comes from here on every rank.
    """
    if why := why_not_cached(model):
        if any(question.grammar is not None for question in questions):
            raise InputError(f"constrained answers need kept keys and values, but the model {why}")
        _say_once(f"answers come from model.generate, one whole prompt each, because the model {why}")
        return plain.ask(
            model,
            tokenizer,
            questions,
            max_new_tokens=max_new_tokens,
            one_line=one_line,
            batch_size=batch_size,
            progress=progress,
            heartbeat=heartbeat,
        )
    prefixes = shared_prefixes([question.prompt for question in questions])
    lengths = [
        len(rest) + sum(map(len, question.answers[:1]))
        for rest, question in zip(prefixes.rests, questions, strict=True)
    ]
    order = sorted(range(len(questions)), key=lambda i: (-lengths[i], i))
    size = _BATCHES_OF_A_SHARE * batch_size
    shares = [order[i : i + size] for i in range(0, len(order), size)]
    mine = shares[distributed.rank() :: distributed.world_size()]
    quiet = progress is None or distributed.rank() != 0
    replies: dict[int, Reply] = {}
    ending = Ending(model, tokenizer, one_line=one_line)
    with (
        suppress(Interrupted),
        evaluating(model),
        CachedLM(model, prefixes.texts, batch_size=batch_size, heartbeat=heartbeat) as lm,
        tqdm(total=sum(map(len, mine)), desc=progress, disable=quiet, leave=False) as bar,
    ):
        for numbers in mine:
            share = _Share(lm, tokenizer, questions, prefixes, max_new_tokens, ending)
            for finished in share.passes(numbers):
                bar.update(finished)
            for reply in share.replies.values():
                reply.cut = max_new_tokens > 0 and not ending(reply.tokens)
            replies.update(share.replies)
    return in_order(replies, len(questions))


class _Share:
    """Some of the questions on one rank: a few are in the batch, the others wait or have their reply."""

    def __init__(
        self,
        lm: CachedLM,
        tokenizer: Any,
        questions: Sequence[Question],
        prefixes: Prefixes,
        max_new_tokens: int,
        ending: Ending,
    ) -> None:
        self.lm, self.questions, self.prefixes = lm, questions, prefixes
        self.max_new_tokens, self.ending = max_new_tokens, ending
        self.penalty = getattr(base_of(lm.model).generation_config, "repetition_penalty", None) or 1.0
        self.replies: dict[int, Reply] = {}
        self.tokenizer, self.bytes, self.constraints = tokenizer, Bytes(tokenizer), dict[int, Constraint]()
        self.longest = max(len(question.prompt) for question in questions)
        self._tries: dict[int, list[Trie]] = {}  # by the answers' identity: labels are those of many questions

    def passes(self, numbers: Sequence[int]) -> Iterator[int]:
        """Answer the questions with these numbers; yields after each pass how many it finished."""
        waiting = deque(numbers)
        live: list[int] = []  # the question of each row
        rows: Rows | None = None
        while waiting or live:
            going_on = [place for place, i in enumerate(live) if not self._is_finished(i)]
            # A pass over few rows takes nearly as long as one over many, but to let rows come and go is not free.
            move = 4 * len(going_on) <= 3 * (self.lm.batch_size if waiting else len(live))
            if rows is not None and move:
                rows = rows.chosen(going_on) if going_on else None
                live = [live[place] for place in going_on]
            if waiting and move:
                new = [waiting.popleft() for _ in range(min(len(waiting), self.lm.batch_size - len(live)))]
                fresh = self._read(new)
                rows, live = (fresh if rows is None else Rows.joined([rows, fresh])), live + new
                yield sum(map(self._is_finished, new))
            elif rows is not None:
                finished = sum(map(self._is_finished, live))
                rows, logits, _ = self.lm.read(rows, [self.replies[i].tokens[-1:] for i in live])
                self._take_tokens(live, logits)
                yield sum(map(self._is_finished, live)) - finished

    def _is_finished(self, i: int) -> bool:
        tokens = self.replies[i].tokens
        return len(tokens) >= self.max_new_tokens or self.ending(tokens)

    def _read(self, new: Sequence[int]) -> Rows:
        """Rows that have read their prompts; their given answers are scored and the first tokens taken."""
        self.replies.update({i: Reply() for i in new})
        for i in new:
            if (grammar := self.questions[i].grammar) is not None:
                self.constraints[i] = Constraint(grammar, self.tokenizer, self.bytes, self.ending.stops)
        rows = self.lm.start([self.prefixes.which[i] for i in new])
        tries = {i: deque(self._tries_of(self.questions[i])) for i in new}
        along = all(tries.values()) and sum(len(of[0]) for of in tries.values()) <= self._room
        firsts = [of.popleft() for of in tries.values()] if along else []
        rows, logits, scores = self.lm.read(rows, [self.prefixes.rests[i] for i in new], firsts)
        if self.max_new_tokens:
            self._take_tokens(new, logits)
        self._take_scores(new if along else [], scores)
        self._score(new, rows, deque((row, trie) for row, i in enumerate(new) for trie in tries[i]))
        return rows

    @property
    def _room(self) -> int:
        return _TOKENS_OF_A_ROW * self.lm.batch_size

    def _tries_of(self, question: Question) -> list[Trie]:
        """Its answers, as many together as a pass has room for; one by one where the model takes no tries."""
        key = id(question.answers)
        if key not in self._tries:
            together = self.lm.takes_tries(self.longest + max(map(len, question.answers), default=0))
            parts: list[list[list[int]]] = []
            tokens = 0
            for answer in question.answers:
                if not (parts and together and tokens + len(answer) <= self._room):
                    parts, tokens = [*parts, []], 0
                parts[-1].append(answer)
                tokens += len(answer)
            self._tries[key] = [Trie.of(part) for part in parts]
        return self._tries[key]

    def _take_tokens(self, live: Sequence[int], logits: Tensor) -> None:
        """The most probable token of each row that goes on. logits [B, V]"""
        own = logits = logits.float()
        if self.penalty != 1.0:
            logits = logits.clone()
            for i, row in zip(live, logits, strict=True):
                said = torch.tensor(self.questions[i].prompt + self.replies[i].tokens, device=row.device)
                row[said] = torch.where(row[said] < 0, row[said] * self.penalty, row[said] / self.penalty)
        for i, token, row, unbent in zip(live, logits.argmax(-1).tolist(), logits, own, strict=True):
            reply = self.replies[i]
            if reply.tokens and self._is_finished(i):
                continue
            if (constraint := self.constraints.get(i)) is not None:
                token = constraint.choose(reply.tokens, row)
                reply.token_scores.append(float(unbent[token] - unbent.logsumexp(0)))
            reply.tokens.append(token)

    def _take_scores(self, new: Sequence[int], scores: Sequence[list[float]]) -> None:
        for i, some in zip(new, scores, strict=True):
            self.replies[i].log_probabilities += some

    def _score(self, new: Sequence[int], rows: Rows, left: deque[tuple[int, Trie]]) -> None:
        """The log-probabilities of the answers that are left, each trie in a row of its own: its prompt's, whose last
        token is read again."""
        while left:
            some: list[tuple[int, Trie]] = []
            room = self._room
            while left and len(some) < _ANSWERS_OF_A_ROW * self.lm.batch_size and (len(left[0][1]) < room or not some):
                some.append(left.popleft())
                room -= 1 + len(some[-1][1])
            numbers = [new[row] for row, _ in some]
            behind = rows.chosen([row for row, _ in some], without_last=True)
            again = [self.questions[i].prompt[-1:] for i in numbers]
            self._take_scores(numbers, self.lm.read(behind, again, [trie for _, trie in some])[2])


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logger.info("%s", line)
