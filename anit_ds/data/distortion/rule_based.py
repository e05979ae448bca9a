"""Rule-based distortion: how many word edits lead from the raw to the noisy instruction (docs/method.md section 3)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


class Distance(NamedTuple):
    """`words`: the word-level Levenshtein distance d_i; `longest`, `raw_length`: words of the longer and raw text."""

    words: int
    longest: int
    raw_length: int

    @property
    def by_length(self) -> float:
        """d_i / max(len), in [0, 1]."""
        return self.words / max(self.longest, 1)


@lru_cache(maxsize=1024)
def _words(raw: str) -> list[str]:
    """A data set's few raw instructions are compared over and over."""
    return raw.split()


def measure(noisy: str, raw: str) -> Distance:
    """The distance between two texts as sequences of words; insertion, deletion and substitution cost 1 each."""
    noisy_words, raw_words = noisy.split(), _words(raw)
    longest = max(len(noisy_words), len(raw_words))
    return Distance(Levenshtein.distance(noisy_words, raw_words), longest, len(raw_words))
