"""What is asked of a model about one prompt, and what it replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from anit_ds.adversarial.causal import base_of
from anit_ds.data.tasks.grammar import Grammar
from anit_ds.modeling import stops_in
from anit_ds.ranks import distributed


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (token ids), and answers whose log-probability is wanted: token ids that end with EOS. `grammar`: the
    answers that the greedy one must be among."""

    prompt: list[int]
    answers: Sequence[list[int]] = ()
    grammar: Grammar | None = None


@dataclass(slots=True)
class Reply:
    """The greedy answer's tokens, with the one that ended it, and the log-probability of each given answer; `cut` where
    the model would have gone on. With a grammar `token_scores` has each token's log-probability."""

    tokens: list[int] = field(default_factory=list)
    token_scores: list[float] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    cut: bool = False


def texts_of(replies: Sequence[Reply], tokenizer: Any) -> list[str]:
    """The greedy answers in words."""
    texts: list[str] = tokenizer.batch_decode([reply.tokens for reply in replies], skip_special_tokens=True)
    return [text.strip() for text in texts]


def stops_of(model: nn.Module, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS, which training writes, and the checkpoint's own."""
    return stops_in(base_of(model).generation_config, tokenizer)


class Ending:
    """Where a greedy answer is over: at a token that ends texts and, if `one_line`, at the end of its first line that
    is not blank, which is all that a task reads of it."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, one_line: bool) -> None:
        self.stops, self._tokenizer, self._one_line = frozenset(stops_of(model, tokenizer)), tokenizer, one_line
        self._breaks: dict[int, bool] = {}

    def __call__(self, tokens: list[int]) -> bool:
        return bool(tokens) and (tokens[-1] in self.stops or (self._one_line and self._ends_line(tokens)))

    def until(self, tokens: list[int]) -> list[int]:
        """The tokens up to the end, the one that is the end included; all where there is none."""
        return next((tokens[:n] for n in range(1, len(tokens)) if self(tokens[:n])), tokens)

    def _ends_line(self, tokens: list[int]) -> bool:
        last = tokens[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in self._tokenizer.decode([last])
        return self._breaks[last] and "\n" in self._tokenizer.decode(tokens, skip_special_tokens=True).lstrip()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode: dropout is off."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Interrupted(Exception):
    """Raised by a heartbeat: nobody waits for the answers any more."""


def in_order(mine: Mapping[int, Reply], number: int) -> list[Reply]:
    """The replies to all questions, on every rank, from those that each rank has by the question's place.

    Raises Interrupted on every rank where one of them was, and has too few.
    """
    everyone: dict[int, Reply] = {}
    for part in distributed.all_gather_objects(dict(mine)):
        everyone.update(part)
    if len(everyone) < number:
        raise Interrupted
    return [everyone[place] for place in range(number)]
