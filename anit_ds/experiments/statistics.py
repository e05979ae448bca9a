"""Means, intervals and differences of micro-F1 over test examples and seeds, and over data sets (docs/method.md,
section 6).

A run is its counts per example: [hits, predicted, gold], from which micro-F1 follows for any choice of examples. The
bootstrap draws test examples and seeds jointly: the same examples and the same seeds for both arms of a difference, so
that what is hard for both cancels. p-values over data sets are Holm-corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000
_AT_ONCE = 250  # weightings of ten thousand examples are 20 MB
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


def example_f1(counts: Sequence[int]) -> float:
    """F1 in [0, 1] of one example's [hits, predicted, gold]; 1 where rightly nothing is said."""
    hits, predicted, gold = counts
    return 2 * hits / (predicted + gold) if predicted + gold else 1.0


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95% bootstrap interval; `p` is two-sided, of the mean being 0 (differences only)."""

    mean: float
    low: float
    high: float
    p: float = float("nan")


Runs = Sequence[Sequence[Sequence[int]]]
"""[seeds, examples, 3]: the counts of runs that differ in their seed."""


def combination(terms: Sequence[tuple[float, Runs]]) -> Interval:
    """The sum of weight x mean micro-F1 over terms, such as a mean over noises or a difference of differences, all of
    them on the same drawn seeds, and those of equally many examples on the same drawn examples.

    Raises ValueError when the terms have not equally many seeds.
    """
    if len({len(runs) for _, runs in terms}) > 1:
        raise ValueError(f"a sum needs equal seeds, not {' and '.join(str(len(runs)) for _, runs in terms)}")
    drawn = sum(weight * _resampled(runs).mean(axis=1) for weight, runs in terms)
    mean = sum(weight * sum(map(_plain, runs)) / len(runs) for weight, runs in terms)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(mean, *_percentiles(drawn), p=float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))))


def plain_sum(terms: Sequence[tuple[float, Sequence[Sequence[int]]]]) -> float:
    """The sum of weight x micro-F1 over terms of one run, counts [examples, 3], without an interval."""
    return sum(weight * _plain(counts) for weight, counts in terms)


def _plain(counts: Sequence[Sequence[int]]) -> float:
    return float(micro_f1(np.asarray(counts, dtype=np.float64)))


def score(runs: Runs) -> Interval:
    """Mean micro-F1 of runs with its interval."""
    return replace(combination([(1, runs)]), p=float("nan"))


def student(values: Sequence[float]) -> Interval:
    """The mean of independent values and its 95% interval by Student's t; of a single value no interval.

    Raises ValueError for none.
    """
    if not values:
        raise ValueError("no values have no mean")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def _resampled(runs: Runs) -> Floats:
    """Micro-F1 [RESAMPLES, seeds] of drawn seeds on drawn examples. Seeds and runs of equally many draw equally, so
    differences pair."""
    seeds = len(runs)
    drawn = np.random.default_rng([_SEED, seeds]).integers(seeds, size=(RESAMPLES, seeds))
    of_each = [_resampled_run(np.asarray(run, dtype=np.int32).tobytes(), seeds, len(run)) for run in runs]
    return np.take_along_axis(np.stack(of_each, axis=1), drawn, axis=1)


@lru_cache(maxsize=256)  # a run's counts stand in its score, its differences and its gaps
def _resampled_run(content: bytes, seeds: int, examples: int) -> Floats:
    counts = np.frombuffer(content, dtype=np.int32).reshape(examples, 3).astype(np.float64)
    weights = _weights(seeds, examples)
    parts = [weights[first : first + _AT_ONCE] @ counts for first in range(0, RESAMPLES, _AT_ONCE)]
    return _f1(*np.moveaxis(np.concatenate(parts), -1, 0))


@lru_cache(maxsize=8)
def _weights(seeds: int, examples: int) -> NDArray[np.uint16]:
    """How often each example is drawn [RESAMPLES, examples]."""
    rng = np.random.default_rng([_SEED, seeds, examples])
    even = np.full(examples, 1 / examples)
    parts = [rng.multinomial(examples, even, size=_AT_ONCE).astype(np.uint16) for _ in range(0, RESAMPLES, _AT_ONCE)]
    return np.concatenate(parts)


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
