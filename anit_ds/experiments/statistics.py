"""Means, intervals and differences of micro-F1 over test examples and seeds (docs/method.md section 6).

A run is its counts per example: [hits, predicted, gold], from which micro-F1 follows for any choice of examples. The
bootstrap draws test examples and seeds jointly: the same examples and the same seeds for both arms of a difference, so
that what is hard for both cancels. p-values over data sets are Holm-corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_SEED = 20250101  # of the bootstrap alone: a report made twice is the same report

Floats = NDArray[np.float64]


def example_counts(row: Mapping[str, Any]) -> list[int]:
    """[hits, predicted, gold] of a row of predictions-NAME.jsonl; a malformed piece is one prediction."""
    gold = Counter(tuple(item) for item in row["gold"])
    predicted = Counter(tuple(item) for item in row["predicted"])
    return [(gold & predicted).total(), predicted.total() + row["malformed"], gold.total()]


def micro_f1(counts: Floats) -> Floats:
    """Micro-F1 [...] of counts [..., examples, 3]; 0 where nothing is predicted and nothing is gold."""
    hits, predicted, gold = np.moveaxis(counts.sum(axis=-2), -1, 0)
    return _f1(hits, predicted, gold)


def _f1(hits: Floats, predicted: Floats, gold: Floats) -> Floats:
    return np.divide(2 * hits, predicted + gold, out=np.zeros_like(hits), where=predicted + gold > 0)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95% bootstrap interval; `p` is two-sided, of the mean being 0 (differences only)."""

    mean: float
    low: float
    high: float
    p: float = float("nan")


def score(runs: Sequence[Sequence[Sequence[int]]]) -> Interval:
    """Mean micro-F1 of runs that differ in their seed, each [examples, 3], with its interval."""
    counts = np.asarray(runs, dtype=np.float64)
    drawn = _resampled(counts).mean(axis=1)
    return Interval(float(micro_f1(counts).mean()), *_percentiles(drawn))


def difference(runs: Sequence[Sequence[Sequence[int]]], baseline: Sequence[Sequence[Sequence[int]]]) -> Interval:
    """Mean micro-F1 of `runs` less that of `baseline`: the same seeds in the same order, the same test examples.

    Raises ValueError when the two are not of one shape.
    """
    ours, theirs = np.asarray(runs, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"a paired difference needs equal seeds and examples, not {ours.shape} and {theirs.shape}")
    drawn = (_resampled(ours) - _resampled(theirs)).mean(axis=1)
    mean = float((micro_f1(ours) - micro_f1(theirs)).mean())
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(mean, *_percentiles(drawn), p=float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))))


def _resampled(counts: Floats) -> Floats:
    """Micro-F1 [RESAMPLES, seeds] of drawn seeds on drawn examples. Equal shapes draw equally, so differences pair."""
    seeds, examples, _ = counts.shape
    rng = np.random.default_rng([_SEED, seeds, examples])
    drawn_seeds = rng.integers(seeds, size=(RESAMPLES, seeds))
    result = np.empty((RESAMPLES, seeds))
    for first in range(0, RESAMPLES, 250):  # a quarter of a thousand weightings of ten thousand examples are 20 MB
        weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=250).astype(np.float64)
        sums = np.einsum("re,sec->rsc", weights, counts, optimize=True)
        rows = np.take_along_axis(sums, drawn_seeds[first : first + 250, :, None], axis=1)
        result[first : first + 250] = _f1(*np.moveaxis(rows, -1, 0))
    return result


def _percentiles(drawn: Floats) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's step-down correction of p-values that are asked about together, under the same keys."""
    corrected: dict[Any, float] = {}
    largest = 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[key] = largest
    return corrected
