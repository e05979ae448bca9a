"""Scores, intervals and corrections against scikit-learn, SciPy and a worked example."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, sem, t
from sklearn.metrics import f1_score

from anit_ds.experiments.entries import compared
from anit_ds.experiments.statistics import combination, example_counts, holm, micro_f1, score, student

RNG = np.random.default_rng(0)


def classified(accuracy: float, examples: int = 400) -> list[list[int]]:
    """Counts an example of a classifier that is right with this probability."""
    return [[int(RNG.random() < accuracy), 1, 1] for _ in range(examples)]


def test_counts_of_predictions_give_scikit_learns_micro_f1():
    gold, said = RNG.integers(3, size=200).tolist(), RNG.integers(3, size=200).tolist()
    rows = [{"gold": [[str(g)]], "predicted": [[str(s)]], "malformed": 0} for g, s in zip(gold, said, strict=True)]
    ours = float(micro_f1(np.array([example_counts(row) for row in rows], dtype=float)))
    assert ours == pytest.approx(f1_score(gold, said, average="micro"))


def test_counts_are_multisets_and_a_malformed_piece_is_a_prediction():
    row = {
        "gold": [["a", "x"], ["a", "x"]],
        "predicted": [["a", "x"], ["a", "x"], ["a", "x"], ["b", "y"]],
        "malformed": 2,
    }
    assert example_counts(row) == [2, 6, 2]


def test_one_seeds_interval_is_scipys_bootstrap():
    run = classified(0.8)
    ours = score([run])
    hits = np.array(run)[:, 0]
    theirs = bootstrap((hits,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert ours.mean == pytest.approx(hits.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_a_mean_gap_is_scipys_paired_bootstrap():
    raw, *bent = (classified(accuracy) for accuracy in (0.9, 0.8, 0.6))
    ours = combination([(0.5, [bent[0]]), (0.5, [bent[1]]), (-1, [raw])])
    hits = [np.array(run)[:, 0] for run in (*bent, raw)]

    def gap(a: np.ndarray, b: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        return ((a + b) / 2 - c).mean(axis=axis)

    theirs = bootstrap(hits, gap, paired=True, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert ours.mean == pytest.approx(gap(*hits))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_seeds_that_disagree_widen_the_interval():
    alike = [classified(0.8)] * 3
    apart = [classified(accuracy) for accuracy in (0.6, 0.8, 0.95)]
    wide, narrow = score(apart), score(alike)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_paired_difference_sees_what_unpaired_scores_cannot():
    base = classified(0.7, 300)
    better = [[1, 1, 1] if number % 25 == 0 else list(row) for number, row in enumerate(base)]
    gain = combination([(1, [better]), (-1, [base])])
    assert gain.mean == pytest.approx(np.mean(np.array(better)[:, 0]) - np.mean(np.array(base)[:, 0]))
    assert score([base]).high > score([better]).low, "the two intervals overlap"
    assert gain.low >= 0 and gain.p < 0.2


def test_nothing_gained_is_not_significant_and_a_large_gain_is():
    base = [classified(0.7), classified(0.7)]
    assert combination([(1, base), (-1, base)]).p == 1.0
    assert combination([(1, [classified(0.95), classified(0.95)]), (-1, base)]).p < 0.01


def test_seeds_with_unequal_numbers_of_examples():
    """A test split carved from training by document has another length with each seed."""
    runs = [classified(0.8, 170), classified(0.8, 250)]
    ours = score(runs)
    assert ours.mean == pytest.approx(np.mean([np.array(run)[:, 0].mean() for run in runs]))
    assert ours.low < ours.mean < ours.high and ours.high - ours.low < 0.2
    assert combination([(1, runs), (-1, runs)]).p == 1.0


def test_arms_of_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match="equal seeds"):
        combination([(1, [classified(0.7)]), (-1, [classified(0.7)] * 2)])


def test_holms_correction_on_a_worked_example():
    """Holm's step-down by hand: sorted p times 4, 3, 2, 1, then made monotone."""
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_a_mean_over_runs_with_and_without_counts_is_of_all_of_them():
    """Records of older versions kept no counts: then there is no interval, and every seed still counts once."""
    shared = {"instructions": "concise", "fraction": 1.0, "max_train": 9, "model": "m", "dataset": "d"}

    def run(seed: int, value: object) -> dict[str, object]:
        return {**shared, "seed": seed, "value": value}

    half, three_quarters = [[hit, 1, 1] for hit in (1, 1, 0, 0)], [[hit, 1, 1] for hit in (1, 1, 1, 0)]
    ours = [run(1, 0.9), run(2, [(1, three_quarters)])]
    theirs = [run(1, [(1, half)]), run(2, [(1, half)])]
    (entry,) = compared(ours, theirs, [lambda r: r["value"]], is_baseline=False)
    assert entry.score.mean == pytest.approx((0.9 + 0.75) / 2) and entry.seeds == 2
    assert entry.difference.mean == pytest.approx((0.4 + 0.25) / 2)
    assert math.isnan(entry.score.low) and math.isnan(entry.difference.low)


@pytest.mark.parametrize("n", [2, 5, 60])
def test_over_independent_values_the_interval_is_scipys_student(n: int):
    values = RNG.normal(1, 2, size=n).tolist()
    ours = student(values)
    low, high = t.interval(0.95, n - 1, sum(values) / n, sem(values))
    assert ours.high - ours.low == pytest.approx(high - low, rel=1e-9)
    assert ours.mean == pytest.approx((low + high) / 2) == pytest.approx((ours.low + ours.high) / 2)


def test_a_single_value_has_no_interval_and_none_no_mean():
    alone = student([3.0])
    assert alone.mean == 3 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="no mean"):
        student([])
