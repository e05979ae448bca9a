"""What a comparison keeps of a run's answers: enough for every interval, matrix and example of its report.

counts         data set -> [hits, predicted, gold] of each test example
dev_counts     the same of dev, by the adapter that was kept
noisy_counts   noise -> data set -> [hits, predicted, gold] of each test example, its instruction bent
equal          noise -> data set -> of each test example 1 where the answer is the one to the raw instruction
confusion      data set -> {"labels": [...], "matrix": a row for each gold label, a column for each answered one, and a
               last one for answers that are no label}; of classifiers whose labels are few
answers        data set -> {"place", "text", "gold", "answer"} of SHOWN test examples, the same ones in every cell
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anit_ds.evaluation import Evaluation
from anit_ds.evaluation.report import read_evaluation, reports_of
from anit_ds.evaluation.robustness import same_answer
from anit_ds.experiments.statistics import example_counts

KEPT = ("counts", "dev_counts", "noisy_counts", "equal", "confusion", "answers")
SHOWN = 200
"""Examples of each test split whose answers are kept, at equal distances: 60 kB a cell."""
_LONGEST = 600  # characters of a text or an answer

Row = Mapping[str, Any]


def kept_answers(folder: Path, noises: Iterable[str]) -> dict[str, Any]:
    """What is kept of a run's eval/, whose test split was also answered under `noises`.

    Raises Damaged where a file is not what was written.
    """
    test, dev = read_evaluation(folder, "test"), read_evaluation(folder, "dev")
    raw = _by_data_set(test)
    bent = {noise: _by_data_set(read_evaluation(folder, f"test-{noise}")) for noise in noises}
    return {
        "counts": _counts(raw),
        "dev_counts": _counts(_by_data_set(dev)),
        "noisy_counts": {noise: _counts(rows) for noise, rows in bent.items()},
        "equal": {noise: _equal(raw, rows) for noise, rows in bent.items()},
        "confusion": _confusion(test, raw),
        "answers": {name: _some(rows) for name, rows in raw.items()},
    }


def _by_data_set(evaluation: Evaluation | None) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in evaluation.predictions if evaluation else ():
        rows[row["dataset"]].append(row)
    return dict(rows)


def _counts(rows: Mapping[str, Iterable[Row]]) -> dict[str, list[list[int]]]:
    return {name: [example_counts(row) for row in some] for name, some in rows.items()}


def _equal(raw: Mapping[str, Sequence[Row]], bent: Mapping[str, Sequence[Row]]) -> dict[str, list[int]]:
    return {
        name: [int(same_answer(*pair)) for pair in zip(raw[name], some, strict=True)] for name, some in bent.items()
    }


def _confusion(test: Evaluation | None, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Of the greedy answers, as the scores are; labels that were scored one by one say which tasks have few."""
    if test is None:
        return {}
    found = {}
    for name, report in reports_of(test.report).items():
        if not report.get("labels"):
            continue
        labels = report["labels"]["names"]
        matrix = [[0] * (len(labels) + 1) for _ in labels]
        for row in rows[name]:
            said = row["predicted"][0][0] if row["predicted"] else None
            matrix[labels.index(row["gold"][0][0])][labels.index(said) if said in labels else len(labels)] += 1
        found[name] = {"labels": labels, "matrix": matrix}
    return found


def _some(rows: Sequence[Row]) -> list[dict[str, Any]]:
    places = sorted({round(at * len(rows) / SHOWN) for at in range(SHOWN)} & set(range(len(rows))))
    return [
        {"place": at, "text": rows[at]["text"][:_LONGEST], "gold": rows[at]["gold"],
         "answer": rows[at]["answer"][:_LONGEST]}
        for at in places
    ]  # fmt: skip
