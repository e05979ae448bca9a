"""What a comparison comes to over its data sets: every arm less `sft`, and less every other arm of plain training.

An `sft` with more epochs is the other side at equal compute. Pairs have the data set and the seed in common. A data set
counts once: its figure is the mean of its seeds, and the interval is Student's over the data sets, of which it says
what another data set may give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, median

from anit_ds.experiments.entries import BASELINE, NOTHING, Entry, Result, Table, place_of
from anit_ds.experiments.statistics import Interval, student
from anit_ds.experiments.tables import grouped, row_names

Pair = tuple[Result, Result]
"""Of an arm and of what it is compared with, on one data set and seed."""
Figure = Callable[[Result], float | None]

_PLAIN = "sft"  # the method that has nothing but data and epochs


def overall(results: Sequence[Result]) -> Table:
    """Test micro-F1 (100 x), raw and under the noises, NLL of the gold answers and training time, as differences and
    ratios; no rows where there is one data set alone."""
    tested = [r for r in results if not r["transfer_from"] and r["micro_f1"] is not None]
    arms = grouped(tested, row_names(tested))
    plain = [name for name, group in arms.items() if group[0]["method"] == _PLAIN]
    plain.sort(key=lambda name: arms[name][0]["arm"] != BASELINE)
    rows: list[list[str | Entry]] = []
    for place, base in enumerate(plain):
        beside = {place_of(r): r for r in arms[base]}
        for name, group in arms.items():
            pairs = [(r, beside[place_of(r)]) for r in group if place_of(r) in beside]
            if name not in plain[: place + 1] and len({r["dataset"] for r, _ in pairs}) > 1:
                rows.append([f"{name} – {base}", *_row(pairs)])
    columns = [
        "", "pairs", "sets ahead", "micro-F1", "under noises", "gap, and the other's", "NLL, ratio", "seconds, ratio"
    ]  # fmt: skip
    notes = [
        "paired by data set and seed; a data set counts once, with the mean of its seeds",
        "intervals are Student's 95% over the data sets",
        "gap: the scores under the noises less the raw one; seconds: the median of the pairs",
        "a column leaves out the pairs that lack its figure; a mixture is one data set",
    ]
    return Table("overall", "Over the data sets", columns, rows, notes)


def _row(pairs: Sequence[Pair]) -> Iterator[str]:
    apart = _by_set(pairs, _f1, _less)
    yield str(len(pairs))
    yield f"{sum(value > 0 for value in apart)} of {len(apart)}"
    yield _signed(apart)
    yield _signed(_by_set(pairs, _noisy, _less))
    gaps = [_by_set(pairs, _gap, side) for side in (lambda ours, _: ours, lambda _, theirs: theirs)]
    yield ", ".join(f"{mean(values):+.1f}" for values in gaps if values) or NOTHING
    yield _ratio(_by_set(pairs, _positive("nll"), lambda ours, theirs: math.log(ours / theirs)))
    seconds = _positive("train_seconds")
    times = [(seconds(ours), seconds(theirs)) for ours, theirs in pairs]
    ratios = [ours / theirs for ours, theirs in times if ours and theirs]
    yield f"{median(ratios):.2f}" if ratios else NOTHING


def _by_set(pairs: Sequence[Pair], figure: Figure, compare: Callable[[float, float], float]) -> list[float]:
    """Of each data set the mean over its seeds."""
    found: dict[str, list[float]] = {}
    for result, base in pairs:
        ours, theirs = figure(result), figure(base)
        if ours is not None and theirs is not None:
            found.setdefault(result["dataset"], []).append(compare(ours, theirs))
    return [mean(values) for values in found.values()]


def _less(ours: float, theirs: float) -> float:
    return ours - theirs


def _f1(result: Result) -> float | None:
    return 100 * float(result["micro_f1"])


def _positive(key: str) -> Figure:
    """Of a record that has it: those of earlier versions may not, and a lost run has no finite NLL."""
    return lambda result: result.get(key) or None


def _noisy(result: Result) -> float | None:
    return _over_noises(result, "micro_f1")


def _gap(result: Result) -> float | None:
    return _over_noises(result, "gap")


def _over_noises(result: Result, key: str) -> float | None:
    under: Mapping[str, Mapping[str, float]] = result.get("robustness") or {}
    return 100 * mean(told[key] for told in under.values()) if under else None


def _signed(values: Sequence[float]) -> str:
    return _told(student(values), "+.1f") if values else NOTHING


def _ratio(logs: Sequence[float]) -> str:
    if not logs:
        return NOTHING
    told = student(logs)
    return _told(Interval(*map(math.exp, (told.mean, told.low, told.high))), ".3f")


def _told(interval: Interval, form: str) -> str:
    ends = f" [{interval.low:{form}}, {interval.high:{form}}]" if math.isfinite(interval.low) else ""
    return f"{interval.mean:{form}}{ends}"
