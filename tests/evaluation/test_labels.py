"""Labels by probability, beside scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from anit_ds.errors import InputError
from anit_ds.evaluation.labels import Labels, fitted_temperature, labels_report
from anit_ds.evaluation.thresholds import read_thresholds

NAMES = ["ham", "spam", "news"]


def drawn(n: int, boldness: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of three labels, and gold labels drawn from their probabilities; then `boldness` times as sure."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 3)) * 2
    gold = np.array([rng.choice(3, p=p) for p in softmax(scores, axis=1)])
    return torch.tensor(scores * boldness), torch.tensor(gold)


def test_scores_and_the_confusion_matrix_are_scikit_learn_s():
    scores, gold = drawn(300)
    report = labels_report(scores, gold, Labels(NAMES, 1.3))
    said = scores.argmax(1)
    assert report["micro_f1"] == pytest.approx(f1_score(gold, said, average="micro"))
    assert report["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"))
    table = precision_recall_fscore_support(gold, said)
    for name, *expected in zip(NAMES, *table, strict=True):
        assert list(report["per_type"][name].values()) == pytest.approx(expected)
    assert [row[:3] for row in report["confusion"]] == confusion_matrix(gold, said).tolist()
    assert all(row[3] == 0 for row in report["confusion"]) and report["abstained"] == 0


@pytest.mark.parametrize("boldness", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_that_makes_gold_labels_most_probable(boldness: float):
    scores, gold = drawn(400, boldness)
    found = fitted_temperature(scores, gold)

    def loss(log_temperature: float) -> float:
        likely = log_softmax(scores.numpy() / np.exp(log_temperature), axis=1)
        return -(likely[np.arange(400), gold] * 400 + likely.mean(1)).mean()

    best = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert found == pytest.approx(best, rel=0.02) and found == pytest.approx(boldness, rel=0.3)
    fresh, right = drawn(2000, boldness, seed=1)
    report = labels_report(fresh, right, Labels(NAMES, found))
    if boldness != 1.0:
        assert report["ece_calibrated"] < 0.5 * report["ece"], "on others than it was fitted to"


def test_no_temperature_comes_from_nothing_or_from_nan():
    assert fitted_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) is None
    assert fitted_temperature(torch.tensor([[0.0, float("nan")]]), torch.tensor([0])) is None


@pytest.mark.parametrize("n", [4, 34, 1000])
def test_a_split_without_an_error_promises_no_certainty(n: int):
    scores = torch.tensor([[0.0, -5.0]] * n)
    probability = Labels(NAMES[:2], fitted_temperature(scores, torch.zeros(n, dtype=torch.int64))).probabilities(scores)
    assert float(probability[0, 0]) == pytest.approx(1 - 1 / (2 * (n + 1)), abs=0.003)


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda p: [x / sum(p) for x in p]),
    st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 1)),
)
def test_a_threshold_is_what_its_label_needs_and_what_suffices_for_it(p: list[float], thresholds: dict[str, float]):
    chosen = Labels(NAMES, thresholds=thresholds).choose(p)
    of = dict(zip(NAMES, p, strict=True))
    reached = [name for name, least in thresholds.items() if of[name] >= least]
    free = [name for name in NAMES if name not in thresholds]
    if reached:
        assert chosen in reached and of[chosen] == max(of[name] for name in reached)
    elif free:
        assert chosen in free and of[chosen] == max(of[name] for name in free)
    else:
        assert chosen is None


def test_what_no_label_reaches_is_counted_and_misses_its_label():
    scores, gold = torch.tensor([[0.0, -9, -9], [0.0, -0.1, -9]]), torch.tensor([0, 1])
    report = labels_report(scores, gold, Labels(NAMES, thresholds=dict.fromkeys(NAMES, 0.9)))
    assert report["abstained"] == 1 and report["confusion"] == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert report["per_type"]["ham"]["precision"] == 1 and report["per_type"]["spam"]["recall"] == 0


@pytest.mark.parametrize(
    "given, said",
    [
        (["spam"], "'spam' is no LABEL=p"), (["spam=0"], "'spam=0' is no"), (["spam=nan"], "'spam=nan' is no"),
        (["spam=1.2"], "'spam=1.2' is no"), (["egg=0.5"], "no label is called 'egg'; there are ham, spam, news"),
        (["spam=0.5", "spam=0.6"], "'spam' has two"),
    ],
)  # fmt: skip
def test_a_wrong_threshold_is_one_sentence(given: list[str], said: str):
    with pytest.raises(InputError, match=f"--threshold: .*{said}"):
        read_thresholds(given, NAMES)
    assert read_thresholds(["ham=0.3", "a=b=0.5"], ["ham", "a=b"]) == {"ham": 0.3, "a=b": 0.5}
