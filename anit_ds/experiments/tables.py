"""The paper's tables, and two of ours, from the cells of a comparison.

    methods      every method against every data set (a mixture's sets, and their mean)
    table1, 2    six noises, detailed (1) and concise (2) instructions: rows are method and noise, columns data sets
    table3       how the distortion is measured: for each measure the noise that was best on dev
    table4       transfer: trained on one set, gone on with a share of another, tested there
    robustness   test score under each noise, and the share of equal answers

A score is 100 x micro-F1, the mean over seeds with its 95% interval, then the difference to `sft` on the same seeds; a
star marks a difference whose p-value, Holm-corrected over the columns of its row, is below 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from anit_ds.experiments.entries import (
    BASELINE,
    NOTHING,
    SHARED_WITH_BASELINE,
    Column,
    Entry,
    Result,
    Table,
    Terms,
    compared,
    notes,
)


def methods(results: Sequence[Result]) -> Table:
    """Every method against every data set, each as it was run; noises side by side as rows of their own."""
    return _by_data_set("methods", "Methods", results, row_names(results))


def dev(results: Sequence[Result]) -> Table:
    """The same on dev, for comparisons that read no test split."""
    return _by_data_set("dev", "Methods on dev", results, row_names(results), split="dev")


def table1(results: Sequence[Result]) -> Table:
    return _noises("table1", "Table 1. Six noises, detailed instructions", results, "detailed")


def table2(results: Sequence[Result]) -> Table:
    return _noises("table2", "Table 2. Six noises, concise instructions", results, "concise")


def _noises(name: str, title: str, results: Sequence[Result], version: str) -> Table:
    of_version = [r for r in results if r["instructions"] == version]
    return _by_data_set(name, title, of_version, row_names(of_version))


def table3(results: Sequence[Result]) -> Table:
    """RBE beside LME; the noise of each entry is the one with the best mean dev score, and is named."""
    best: list[Result] = []
    picked: dict[tuple[str, str, str], str] = {}
    groups = grouped(results, lambda r: (r["arm"], _measure(r), r["dataset"]))
    for key, group in groups.items():
        noise = max(grouped(group, lambda r: r["noise"]).items(), key=lambda item: _mean_dev(item[1]))[0]
        picked[key] = noise
        best += [r for r in group if r["noise"] == noise]
    name = row_names(best, without=("noise", "distortion"))
    table = _by_data_set(
        "table3",
        "Table 3. Rule-based (RBE) beside LM-based (LME) distortion",
        best,
        lambda r: name(r) if r["noise"] == "none" else f"{name(r)}, {_measure(r)}",
    )
    told = [f"{d}: {noise} ({arm}, {measure})" for (arm, measure, d), noise in picked.items() if noise != "none"]
    if told:
        table.notes.append("noise picked on dev: " + "; ".join(told))
    return table


def _measure(result: Result) -> str:
    return NOTHING if result["noise"] == "none" else str(result["distortion"]).upper()


def _mean_dev(group: Sequence[Result]) -> float:
    scores = [r["dev_micro_f1"] for r in group if r["dev_micro_f1"] is not None]
    return sum(scores) / len(scores) if scores else -1.0


def table4(results: Sequence[Result]) -> Table:
    """Transfer: a row for each direction and arm, a column for each share of the target's training split."""
    moved = [r for r in results if r["transfer_from"]]
    fractions = sorted({r["fraction"] for r in moved})
    columns = [_where(_score("test"), "fraction", fraction) for fraction in fractions]
    rows: list[list[str | Entry]] = []
    for (source, target), direction in grouped(moved, lambda r: (r["transfer_from"], r["dataset"])).items():
        baseline = [r for r in direction if r["arm"] == BASELINE]
        for label, group in grouped(direction, lambda r: r["arm"]).items():
            row = compared(group, baseline, columns, is_baseline=label == BASELINE)
            rows.append([f"{source} → {target}", label, *row])
    heads = ["direction", "first training", *(f"{100 * fraction:g}%" for fraction in fractions)]
    return Table("table4", "Table 4. Transfer, gone on with by plain SFT", heads, rows, notes(moved, rows))


def robustness(results: Sequence[Result]) -> Table:
    """For each data set and method: raw score, the score under each noise, their mean gap, and mean consistency."""
    scored = [r for r in results if r.get("robustness") and not r["transfer_from"]]
    noises = list(dict.fromkeys(noise for r in scored for noise in r["robustness"]))
    columns = [_score("test"), *map(_under, noises), _mean_gap, _equal_answers]
    name, several = row_names(scored), len({r["dataset"] for r in scored}) > 1
    rows: list[list[str | Entry]] = []
    for (dataset, label), group in grouped(scored, lambda r: (r["dataset"], name(r))).items():
        baseline = [r for r in scored if (r["dataset"], r["arm"]) == (dataset, BASELINE)]
        row = compared(group, baseline, columns, is_baseline=group[0]["arm"] == BASELINE)
        rows.append([f"{dataset}, {label}" if several else label, *row])
    heads = ["", "raw", *noises, "mean gap", "equal answers"]
    said = notes(scored, rows)
    said.append("mean gap: the scores under the noises less the raw one; equal answers: in % of the test examples")
    return Table("robustness", "Robustness: instructions bent at evaluation", heads, rows, said)


def _score(split: str, inner: str | None = None) -> Column:
    """Micro-F1 on test or dev, of the data set `inner` or the mean of all."""
    prefix = "dev_" if split == "dev" else ""

    def column(result: Result) -> Terms | float | None:
        counts = result.get(f"{prefix}counts") or {}
        if inner is not None:
            return [(1.0, counts[inner])] if inner in counts else None
        return _average(list(counts.values())) or result.get(f"{prefix}micro_f1")

    return column


def _under(noise: str) -> Column:
    def column(result: Result) -> Terms | float | None:
        told = result["robustness"].get(noise, {}).get("micro_f1")
        return _average(list(result.get("noisy_counts", {}).get(noise, {}).values())) or told

    return column


def _mean_gap(result: Result) -> Terms | float | None:
    raw, bent = result.get("counts") or {}, result.get("noisy_counts") or {}
    if not bent:
        return mean([told["gap"] for told in result["robustness"].values()])
    under = _average([counts for of_noise in bent.values() for counts in of_noise.values()])
    return [*under, *((-weight, counts) for weight, counts in _average(list(raw.values())))]


def _equal_answers(result: Result) -> Terms | float | None:
    """A share as the micro-F1 of one hit or none of one prediction and one gold item."""
    equal = [flags for of_noise in (result.get("equal") or {}).values() for flags in of_noise.values()]
    if not equal:
        return mean([told["consistency"] for told in result["robustness"].values()])
    return _average([[[flag, 1, 1] for flag in flags] for flags in equal])


def _average(parts: Sequence[Sequence[Sequence[int]]]) -> Terms:
    return [(1 / len(parts), counts) for counts in parts]


def _where(column: Column, axis: str, value: Any) -> Column:
    return lambda result: column(result) if result[axis] == value else None


TABLES: dict[str, Callable[[Sequence[Result]], Table]] = {
    "methods": methods, "table1": table1, "table2": table2, "table3": table3, "table4": table4,
    "robustness": robustness,
}  # fmt: skip


# Axes beside data set, method, noise and seed: a row's name says those that vary, so that no row mixes two of them.
_OTHER_AXES = ("omega", "distortion", "instructions", "fraction", "max_train", "model")


def row_names(results: Sequence[Result], without: Sequence[str] = ()) -> Callable[[Result], str]:
    """A function from a result to its row's name: arm, noise, and each other axis that varies in `results`."""
    bent = [r for r in results if r["noise"] != "none"]
    varying = [
        axis
        for axis in _OTHER_AXES
        if axis not in without and len({r[axis] for r in (results if axis in SHARED_WITH_BASELINE else bent)}) > 1
    ]

    def name(result: Result) -> str:
        clean = result["noise"] == "none"
        parts = [result["arm"], *([] if clean or "noise" in without else [result["noise"]])]
        felt = [axis for axis in varying if axis in SHARED_WITH_BASELINE or not clean]
        return ", ".join([*parts, *(f"{axis} {result[axis]}" for axis in felt)])

    return name


def _by_data_set(
    name: str, title: str, results: Sequence[Result], label: Callable[[Result], str], *, split: str = "test"
) -> Table:
    """Rows by `label`, `sft` first; columns are data sets, and their mean where there are several."""
    prefix = "dev_" if split == "dev" else ""
    results = [r for r in results if not r["transfer_from"] and r.get(f"{prefix}micro_f1") is not None]
    inside = {(r["dataset"], inner): None for r in results for inner in r.get(f"{prefix}counts") or [r["dataset"]]}
    columns = [_where(_score(split, None if outer == inner else inner), "dataset", outer) for outer, inner in inside]
    baseline = [r for r in results if r["arm"] == BASELINE]
    rows: list[list[str | Entry]] = []
    for text, group in sorted(grouped(results, label).items(), key=lambda item: item[1][0]["arm"] != BASELINE):
        row = compared(group, baseline, columns, is_baseline=group[0]["arm"] == BASELINE)
        means = [mean([r[f"{prefix}micro_f1"] for r in group if r["dataset"] == d]) for d, _ in inside]
        average = [_percent(mean(means)) if NOTHING not in row else NOTHING] if len(columns) > 1 else []
        rows.append([text, *row, *average])
    heads = [inner if outer == inner else f"{inner} (in {outer})" for outer, inner in inside]
    return Table(name, title, ["", *heads, *(["mean"] if len(columns) > 1 else [])], rows, notes(results, rows))


def grouped(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    """Results by a key, groups and members in the order in which they come."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def mean(values: Sequence[float]) -> float:
    """The mean, or NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value == value else NOTHING
