"""Random words for the noise: English dictionary words from the package `english-words`."""

from __future__ import annotations

from functools import lru_cache

from english_words import get_english_words_set


@lru_cache(maxsize=1)
def english_vocabulary() -> tuple[str, ...]:
    """Lower-case words of 2 to 12 letters, sorted: those that two dictionaries (web2 and gcide) agree on.

    Either alone is full of words that no reader knows. Sorted, because a set's order would make the noise differ
    from process to process.
    """
    web2, gcide = (get_english_words_set([source], alpha=True, lower=True) for source in ("web2", "gcide"))
    return tuple(sorted(word for word in web2 & gcide if 2 <= len(word) <= 12))
