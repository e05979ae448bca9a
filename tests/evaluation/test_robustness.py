"""What an answer to a noisy instruction is compared with."""

from __future__ import annotations

from anit_ds.evaluation.robustness import consistency


def _rows(dataset: str, answers: str) -> list[dict]:
    return [{"id": n, "dataset": dataset, "predicted": [[a]], "malformed": 0} for n, a in enumerate(answers)]


def test_of_a_mixture_consistency_is_the_mean_of_its_sets():
    raw, noisy = _rows("a", "xxxxxx"), _rows("a", "xxxxxx")
    assert consistency(raw, noisy) == 1
    assert consistency([*raw, *_rows("b", "xy")], [*noisy, *_rows("b", "yy")]) == 0.75
    assert consistency([], []) == 0
