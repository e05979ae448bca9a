"""From distances to beta, a data set's semantic distortion in [0, 1] (docs/method.md section 3), in constant memory.

`DistanceTally` counts the distances of noisy samples; what it knows is enough for both normalisations, so a set of
any size is measured in one pass and the tallies of its parts can be merged.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from anit_ds.data.distortion.rule_based import Distance

logger = logging.getLogger(__name__)

Normalise = Literal["auto", "minmax", "length"]


@dataclass
class DistanceTally:
    """How many noisy samples have each distance."""

    counts: Counter[Distance] = field(default_factory=Counter)

    def add(self, distance: Distance) -> None:
        self.counts[distance] += 1

    def merge(self, other: DistanceTally) -> None:
        self.counts.update(other.counts)

    @property
    def words(self) -> dict[int, int]:
        """How many samples lie d words away, by d in ascending order."""
        histogram: Counter[int] = Counter()
        for distance, count in self.counts.items():
            histogram[distance.words] += count
        return dict(sorted(histogram.items()))


@dataclass(frozen=True)
class Normaliser:
    """Turns a distance into d'_i. `by` is `minmax` or `length`; `why` says how that came to be."""

    by: Literal["minmax", "length"]
    why: str
    smallest: int = 0
    largest: int = 0

    def __call__(self, distance: Distance) -> float:
        return distance.by_length if self.by == "length" else self.minmax(distance.words)

    def minmax(self, words: int) -> float:
        """(d_i - d_min) / (d_max - d_min)."""
        return (words - self.smallest) / (self.largest - self.smallest)

    def beta(self, tally: DistanceTally) -> float:
        """The mean of d'_i over the noisy samples; 0 when there are none."""
        total = sum(self(distance) * count for distance, count in tally.counts.items())
        return min(1.0, total / max(1, tally.counts.total()))


def normaliser(tally: DistanceTally, normalise: Normalise) -> Normaliser:
    """The normalisation for these distances.

    `minmax` is the paper's (d - min) / (max - min). Where every noisy sample has the same distance that is 0/0, and
    d / max(len) takes its place, logged once. `auto` takes `length` where the raw instructions have several
    lengths (min-max would measure their length more than the noise), else `minmax`.
    """
    if not tally.counts:
        return Normaliser("length", "no sample is noisy")
    if normalise == "length":
        return Normaliser("length", "as configured")
    if normalise == "auto" and len({distance.raw_length for distance in tally.counts}) > 1:
        return Normaliser("length", "auto: the instructions have several lengths")
    smallest, largest = min(tally.words), max(tally.words)
    if smallest == largest:
        why = f"every noisy instruction is {smallest} words away from its raw one, so min-max would be 0/0"
        logger.warning("rule-based distortion is divided by length: %s", why)
        return Normaliser("length", why)
    return Normaliser("minmax", "as configured" if normalise == "minmax" else "auto", smallest, largest)
