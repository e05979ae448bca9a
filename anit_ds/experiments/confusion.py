"""Confusion matrices of the greedy answers: for each data set of few labels one matrix a method, summed over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anit_ds.experiments.entries import Result
from anit_ds.experiments.tables import grouped, row_names


@dataclass(frozen=True)
class Confusion:
    """counts: a row for each gold label, a column for each answer; the last of `answers` may be "no label"."""

    dataset: str
    method: str
    labels: list[str]
    answers: list[str]
    counts: list[list[int]]

    def share(self, row: int, column: int) -> float:
        """Of the examples of a gold label those with this answer, in [0, 1]."""
        return self.counts[row][column] / max(1, sum(self.counts[row]))


def confusions(results: Sequence[Result]) -> list[Confusion]:
    """In the order of the results; the column of answers that are no label is left out where there are none."""
    kept = [r for r in results if r.get("confusion") and not r["transfer_from"]]
    name = row_names(kept)
    found = []
    for dataset in dict.fromkeys((r["dataset"], inner) for r in kept for inner in r["confusion"]):
        of_set = [r for r in kept if r["dataset"] == dataset[0]]
        for method, group in grouped(of_set, name).items():
            labels = group[0]["confusion"][dataset[1]]["labels"]
            counts = np.sum([r["confusion"][dataset[1]]["matrix"] for r in group], axis=0)
            answers = [*labels, "no label"] if counts[:, -1].any() else labels
            found.append(Confusion(dataset[1], method, labels, answers, counts[:, : len(answers)].tolist()))
    return found
