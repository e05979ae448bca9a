"""Answers that are valid by construction: of the tokens in the model's order, the first after which one still is.

Beside the answer each item has a score, from its tokens' probabilities under the model without the constraint.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from torch import Tensor

from anit_ds.data.tasks.answers import split_unescaped
from anit_ds.data.tasks.grammar import Grammar
from anit_ds.evaluation.asking import Reply

# The most probable token is nearly always valid; so many are looked at before the whole vocabulary is.
_FIRST = 32
# A character beyond ASCII may take several tokens, a byte each; until it is whole each of them decodes to U+FFFD.
_PARTIAL, _MOST_PARTIAL = "\ufffd", 3


class Constraint:
    """What one question's answer may be, token by token."""

    def __init__(self, grammar: Grammar, tokenizer: Any, stops: frozenset[int]) -> None:
        self.grammar, self._tokenizer, self._stops = grammar, tokenizer, stops

    def choose(self, tokens: list[int], logits: Tensor) -> tuple[int, float]:
        """The most probable token that may follow `tokens`, and its log-probability among all. logits [V] float32.

        Where none may, the answer ends: what is valid of it is kept by `Grammar.whole_part`.
        """
        said = _decoded(tokens, self._tokenizer)
        for size in (_FIRST, len(logits)):
            for token in logits.topk(min(size, len(logits))).indices.tolist():
                if self._may_follow(tokens, said, token):
                    return token, float(logits[token] - logits.logsumexp(0))
        stop = min(self._stops)
        return stop, float(logits[stop] - logits.logsumexp(0))

    def _may_follow(self, tokens: list[int], said: str, token: int) -> bool:
        if token in self._stops:
            return self.grammar.is_whole(said)
        now = _decoded([*tokens, token], self._tokenizer)
        whole = now.rstrip(_PARTIAL)
        if len(now) <= len(said) or len(now) - len(whole) > _MOST_PARTIAL:
            return False
        if whole == now:
            return self.grammar.begins(now)
        return any(self.grammar.begins(whole + character) for character in self.grammar.beyond_ascii)


def item_scores(reply: Reply, tokenizer: Any) -> list[float]:
    """For each item of a constrained answer the geometric mean of its tokens' probabilities, in (0, 1].

    A token belongs to the item in which it begins; what ends the answer belongs to the last one.
    """
    ends = list(accumulate(len(piece) + 1 for piece in split_unescaped(_decoded(reply.tokens, tokenizer).strip(), ";")))
    of_items: list[list[float]] = [[] for _ in ends]
    for number, score in enumerate(reply.token_scores):
        begun = len(_decoded(reply.tokens[:number], tokenizer).lstrip())
        of_items[next((at for at, end in enumerate(ends) if begun < end), -1)].append(score)
    return [math.exp(sum(scores) / len(scores)) for scores in of_items if scores]


def _decoded(tokens: list[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
