"""Answers that are valid by construction: at each step the most probable token that keeps the answer valid.

Beside the answer each item has a score, from its tokens' probabilities under the model without the constraint.
"""

from __future__ import annotations

import codecs
import math
import re
from itertools import accumulate
from typing import Any

from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from anit_ds.data.tasks.answers import split_unescaped
from anit_ds.data.tasks.grammar import Grammar
from anit_ds.evaluation.questions import Reply

# The most probable token is nearly always valid; so many are looked at before the whole vocabulary is.
_FIRST = 32
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a piece of tokenizers that write a byte where they lack a character


class Bytes:
    """The bytes of a tokenizer's tokens, of which a character beyond ASCII may take several."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._of: dict[int, bytes | None] = {}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        # The alphabet in which GPT-2 and its heirs write any byte as a character that can be seen.
        self._alphabet = {c: b for b, c in bytes_to_unicode().items()} if "ByteLevel" in repr(decoder) else None

    def unfinished(self, tokens: list[int]) -> bytes | None:
        """The bytes at the end that are no whole character yet; None where they never will be one."""
        run: list[bytes] = []
        for token in reversed(tokens):
            if (piece := self._bytes(token)) is None:
                break
            run.append(piece)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(b"".join(reversed(run)))
        except UnicodeDecodeError:
            return None
        return decoder.getstate()[0]

    def _bytes(self, token: int) -> bytes | None:
        """None for a token of whole characters whose bytes nobody needs."""
        if token not in self._of:
            piece = self._tokenizer.convert_ids_to_tokens(token) or ""
            if piece and self._alphabet and all(character in self._alphabet for character in piece):
                self._of[token] = bytes(self._alphabet[character] for character in piece)
            else:
                found = _BYTE.fullmatch(piece)
                self._of[token] = bytes.fromhex(found[1]) if found else None
        return self._of[token]


class Constraint:
    """What one question's answer may be, token by token."""

    def __init__(self, grammar: Grammar, tokenizer: Any, bytes_of: Bytes, stops: frozenset[int]) -> None:
        self.grammar, self._tokenizer, self._bytes, self._stops = grammar, tokenizer, bytes_of, stops

    def choose(self, tokens: list[int], logits: Tensor) -> int:
        """The most probable token that may follow `tokens`. logits [V] float32.

        Where none may, the answer ends: what is valid of it is kept by `Grammar.whole_part`.
        """
        said = _decoded(tokens, self._tokenizer)
        for size in (_FIRST, len(logits)):
            for token in logits.topk(min(size, len(logits))).indices.tolist():
                if self._may_follow(tokens, said, token):
                    return token
        return min(self._stops)

    def _may_follow(self, tokens: list[int], said: str, token: int) -> bool:
        if token in self._stops:
            return self.grammar.is_whole(said)
        now, unfinished = _decoded([*tokens, token], self._tokenizer), self._bytes.unfinished([*tokens, token])
        if not unfinished:
            return unfinished is not None and now != said and self.grammar.begins(now)
        whole = now.rstrip("\ufffd")
        may_be = (character for character in self.grammar.beyond_ascii if character.encode().startswith(unfinished))
        return any(self.grammar.begins(whole + character) for character in may_be)


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
