"""What stands in a table: scores with their intervals and their differences to the baseline, as numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anit_ds.experiments import statistics
from anit_ds.experiments.statistics import Interval

Result = Mapping[str, Any]
Terms = Sequence[tuple[float, Sequence[Sequence[int]]]]
"""A sum of weight x micro-F1 of counts per example."""
Column = Callable[[Result], "Terms | float | None"]
"""What a result has for a column: a sum with counts; a bare number where no counts were kept; or nothing."""

BASELINE = "sft"
SIGNIFICANT = 0.05
NOTHING = "–"
# The baseline of a difference is the one trained with the same of these (sft feels no omega and no distortion).
SHARED_WITH_BASELINE = ("instructions", "fraction", "max_train", "model")


def place_of(result: Result) -> tuple[Any, ...]:
    """What a result and the baseline's that it is paired with have in common."""
    return tuple(result[axis] for axis in ("dataset", "seed", *SHARED_WITH_BASELINE))


@dataclass(frozen=True)
class Entry:
    """A mean over `seeds` of them, and where there is a baseline its paired difference; `significant` is
    Holm-corrected."""

    score: Interval
    difference: Interval | None = None
    significant: bool = False
    seeds: int = 1

    def __str__(self) -> str:
        return " ".join(text for text in (self.mean, self.interval, self.gain) if text)

    @property
    def mean(self) -> str:
        return f"{100 * self.score.mean:.1f}"

    @property
    def interval(self) -> str:
        return _interval(self.score)

    @property
    def gain(self) -> str:
        return f"{100 * self.difference.mean:+.1f}{'*' if self.significant else ''}" if self.difference else ""

    @property
    def gain_interval(self) -> str:
        return _interval(self.difference) if self.difference else ""


def _interval(value: Interval) -> str:
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]" if math.isfinite(value.low) else ""


@dataclass
class Table:
    """A table whose cells are texts, and entries that can be texts."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str | Entry]]
    notes: list[str] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        return [[str(cell) for cell in row] for row in self.rows]


def compared(
    group: Sequence[Result], baseline: Sequence[Result], columns: Sequence[Column], *, is_baseline: bool
) -> list[str | Entry]:
    """A row of entries: `group` in each column, and beside `baseline` on the seeds that both have."""
    found: dict[int, tuple[Interval, Interval | None, int]] = {}
    for number, column in enumerate(columns):
        ours = _by_seed(group, column)
        if not ours:
            continue
        some = next(r for r in group if column(r) is not None)
        beside = [r for r in baseline if all(r[axis] == some[axis] for axis in SHARED_WITH_BASELINE)]
        theirs = {} if is_baseline else _by_seed(beside, column)
        shared = [seed for seed in ours if seed in theirs and _alike(ours[seed], theirs[seed])]
        apart = [_less(ours[seed], theirs[seed]) for seed in shared]
        found[number] = _mean(list(ours.values())), _mean(apart) if apart else None, len(ours)
    asked = {number: gain.p for number, (_, gain, _) in found.items() if gain and math.isfinite(gain.p)}
    corrected = statistics.holm(asked)
    row: list[str | Entry] = [NOTHING] * len(columns)
    for number, (score, gain, seeds) in found.items():
        row[number] = Entry(score, gain, corrected.get(number, 1.0) < SIGNIFICANT, seeds)
    return row


def _by_seed(results: Iterable[Result], column: Column) -> dict[int, Terms | float]:
    """Raises ValueError for two results of one seed: they differ in something that the table does not show."""
    runs: dict[int, Terms | float] = {}
    for result in results:
        value = column(result)
        if value is None:
            continue
        if result["seed"] in runs:
            raise ValueError(f"a table's entry mixes two runs of seed {result['seed']} on {result['dataset']}")
        runs[result["seed"]] = value
    return runs


def _alike(ours: Terms | float, theirs: Terms | float) -> bool:
    if isinstance(ours, float) or isinstance(theirs, float):
        return True
    return [len(counts) for _, counts in ours] == [len(counts) for _, counts in theirs]


def _less(ours: Terms | float, theirs: Terms | float) -> Terms | float:
    if isinstance(ours, float) or isinstance(theirs, float):
        return _bare(ours) - _bare(theirs)
    return [*ours, *((-weight, counts) for weight, counts in theirs)]


def _bare(run: Terms | float) -> float:
    return run if isinstance(run, float) else statistics.plain_sum(run)


def _mean(runs: Sequence[Terms | float]) -> Interval:
    """Over seeds; where one of them has no counts there is no interval."""
    sums = [run for run in runs if not isinstance(run, float)]
    if len(sums) < len(runs):
        return Interval(sum(map(_bare, runs)) / len(runs), math.nan, math.nan)
    weights = [weight for weight, _ in sums[0]]
    return statistics.combination([(w, [run[term][1] for run in sums]) for term, w in enumerate(weights)])


def notes(results: Sequence[Result], rows: Sequence[Sequence[str | Entry]]) -> list[str]:
    """What a reader of these rows must know; nothing that none of them shows."""
    entries = [cell for row in rows for cell in row if isinstance(cell, Entry)]
    seeds = sorted({entry.seeds for entry in entries}) or [len({r["seed"] for r in results})]
    fewest, most = seeds[0], seeds[-1]
    count = f"{most} seed{'s' if most != 1 else ''}"
    drawn = any(entry.interval for entry in entries)
    of_each = count if fewest == most else f"{fewest} to {count} an entry"
    said = [f"{of_each}; intervals are 95% bootstraps over examples and seeds" if drawn else of_each]
    if fewest <= 3:
        said.append(f"{fewest} seed{'s alone prove' if fewest != 1 else ' alone proves'} nothing: read the intervals")
    columns = [[cell.seeds for cell in column if isinstance(cell, Entry)] for column in zip(*rows, strict=True)]
    if any(len(set(column)) > 1 for column in columns):
        said.append(
            "not every method ran with every seed: compare the differences, which are paired, and not the means"
        )
    if any(entry.difference for entry in entries):
        several = max(sum(isinstance(cell, Entry) for cell in row) for row in rows) > 1
        over = ", Holm-corrected over the columns of a row" if several else ""
        star = f"; * p < {SIGNIFICANT}{over}" if any(entry.gain_interval for entry in entries) else ""
        said.append(f"signed numbers are differences to {BASELINE} on the same seeds{star}")
    tuned = sorted({f"{r['arm']} on {r['transfer_from'] or r['dataset']}" for r in results if r.get("tuned")})
    if tuned:
        said.append("tuned on the dev split of the same data set: " + ", ".join(tuned))
    told = dict.fromkeys(f"{r['dataset']}: {note}" for r in results for note in r.get("notes", []))
    return [*said, *told]
