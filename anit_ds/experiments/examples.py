"""The test examples that tell most of how methods differ.

Those on which the methods' scores, each the mean over its seeds, lie furthest apart; by turns one on which `sft` is
above the others' mean and one on which it is below, so that the choice takes no side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import mean, pstdev
from typing import Any

from anit_ds.experiments.entries import BASELINE, Result
from anit_ds.experiments.statistics import example_f1
from anit_ds.experiments.tables import grouped, row_names

SHOWN = 10


@dataclass(frozen=True)
class Answered:
    """One method's answer to an example. `score` in [0, 1]: its F1 there, the mean over seeds; `text`: the answer with
    the first seed; `baseline`: whether the method is `sft`."""

    method: str
    score: float
    text: str
    baseline: bool


@dataclass(frozen=True)
class Telling:
    """A test example and what each method answers."""

    dataset: str
    text: str
    gold: str
    answers: Sequence[Answered]

    @property
    def spread(self) -> float:
        return pstdev([answer.score for answer in self.answers])

    @property
    def baseline_ahead(self) -> bool:
        """Whether `sft` scores above the others' mean; False where it is not among them."""
        own = [a.score for a in self.answers if a.baseline]
        others = [a.score for a in self.answers if not a.baseline]
        return bool(own and others) and mean(own) > mean(others)


def telling_examples(results: Sequence[Result]) -> list[Telling]:
    """At most SHOWN examples from the answers that were kept (answers.py); none where all methods score alike."""
    kept = [r for r in results if r.get("answers") and not r["transfer_from"]]
    found = [example for group in grouped(kept, lambda r: r["dataset"]).values() for example in _compared(group)]
    apart = sorted((e for e in found if e.spread > 0), key=lambda e: -e.spread)
    ahead, behind = ([e for e in apart if e.baseline_ahead is side] for side in (True, False))
    return [e for e in chain(*zip_longest(ahead, behind)) if e is not None][:SHOWN]


def _compared(results: Sequence[Result]) -> list[Telling]:
    """Every kept example of one cell's data set that all methods answered."""
    methods = grouped(results, row_names(results))
    examples: list[Telling] = []
    for dataset, rows in results[0]["answers"].items():
        for number, row in enumerate(rows):
            answers = [
                Answered(
                    method,
                    mean(_score(r, dataset, row["place"]) for r in group),
                    _said(group[0], dataset, number),
                    group[0]["arm"] == BASELINE,
                )
                for method, group in methods.items()
                if all(_asked_the_same(r, dataset, number, row) for r in group)
            ]
            if len(answers) == len(methods) > 1:
                examples.append(Telling(dataset, row["text"], _shown(row["gold"]), answers))
    return examples


def _asked_the_same(result: Result, dataset: str, number: int, row: Mapping[str, Any]) -> bool:
    rows = result["answers"].get(dataset, [])
    return number < len(rows) and (rows[number]["place"], rows[number]["text"]) == (row["place"], row["text"])


def _score(result: Result, dataset: str, place: int) -> float:
    return example_f1(result["counts"][dataset][place])


def _said(result: Result, dataset: str, number: int) -> str:
    text: str = result["answers"][dataset][number]["answer"]
    return text.strip() or "(nothing)"


def _shown(gold: Sequence[Sequence[str]]) -> str:
    return "; ".join(": ".join(item) for item in gold) or "None"
