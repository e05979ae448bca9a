"""Micro-F1 over multisets of items (docs/method.md section 6), the same for every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from anit_ds.data.examples import Item
from anit_ds.data.tasks.answers import NONE, Parsed

_EMPTY_SET: Counter[Item] = Counter({(NONE,): 1})


@dataclass(frozen=True)
class Score:
    """How well parsed answers agree with gold items. All rates are in [0, 1]; a rate with nothing to count is 0.

    `micro_f1`, `precision`, `recall`: from global true and false positives and negatives; the empty set is no item.
    `micro_f1_with_none`: the same where an empty set counts as one item, `None`.
    `macro_f1`: the mean F1 of the labels that are gold or predicted at least once.
    `subset_accuracy`: the share of answers that state all gold items and nothing else.
    `parse_failures`: the share of answers with a piece that could not be understood.
    `per_type`: for each label {precision, recall, f1, support}; malformed pieces belong to no label.
    `n`: the number of answers.
    """

    micro_f1: float
    precision: float
    recall: float
    micro_f1_with_none: float
    macro_f1: float
    subset_accuracy: float
    parse_failures: float
    per_type: dict[str, dict[str, float]]
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Tally:
    hits: int = 0
    predicted: int = 0
    gold: int = 0

    def add(self, gold: Counter[Item], predicted: Counter[Item], malformed: int = 0) -> None:
        self.hits += (gold & predicted).total()
        self.predicted += predicted.total() + malformed
        self.gold += gold.total()

    @property
    def precision(self) -> float:
        return self.hits / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.hits / (self.predicted + self.gold) if self.predicted + self.gold else 0.0


@dataclass
class _Tallies:
    overall: _Tally = field(default_factory=_Tally)
    with_none: _Tally = field(default_factory=_Tally)
    by_label: dict[str, _Tally] = field(default_factory=dict)


def score(gold: Sequence[Sequence[Item]], predicted: Sequence[Parsed]) -> Score:
    """Score one parsed answer per gold multiset. A malformed piece is one false positive.

    Raises ValueError when the two differ in number.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold sets and {len(predicted)} predictions: there must be one each")
    tallies, exact, failures = _Tallies(), 0, 0
    for items, answer in zip(gold, predicted, strict=True):
        expected, said = Counter(items), Counter(answer.items)
        _count(tallies, expected, said, answer.malformed)
        exact += expected == said and not answer.malformed
        failures += answer.malformed > 0
    per_type = {label: _row(tally) for label, tally in sorted(tallies.by_label.items())}
    return Score(
        micro_f1=tallies.overall.f1,
        precision=tallies.overall.precision,
        recall=tallies.overall.recall,
        micro_f1_with_none=tallies.with_none.f1,
        macro_f1=sum(row["f1"] for row in per_type.values()) / max(1, len(per_type)),
        subset_accuracy=exact / len(gold) if gold else 0.0,
        parse_failures=failures / len(gold) if gold else 0.0,
        per_type=per_type,
        n=len(gold),
    )


def _count(tallies: _Tallies, gold: Counter[Item], predicted: Counter[Item], malformed: int) -> None:
    tallies.overall.add(gold, predicted, malformed)
    tallies.with_none.add(gold or _EMPTY_SET, predicted if predicted or malformed else _EMPTY_SET, malformed)
    for label in {item[0] for item in (*gold, *predicted)}:
        tally = tallies.by_label.setdefault(label, _Tally())
        tally.add(_with_label(gold, label), _with_label(predicted, label))


def _with_label(items: Counter[Item], label: str) -> Counter[Item]:
    return Counter({item: count for item, count in items.items() if item[0] == label})


def _row(tally: _Tally) -> dict[str, float]:
    return {"precision": tally.precision, "recall": tally.recall, "f1": tally.f1, "support": tally.gold}
