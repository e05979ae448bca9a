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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anit_ds.experiments import statistics
from anit_ds.experiments.statistics import Interval

Result = Mapping[str, Any]
Column = tuple[str, str]
"""(cell's data set, the set inside it): the same twice, but for a mixture."""

_BASELINE = "sft"
_SIGNIFICANT = 0.05
NOTHING = "–"


@dataclass
class Table:
    """A table as text: its cells are what a reader sees."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def methods(results: Sequence[Result]) -> Table:
    """Every method against every data set, each as it was run; noises side by side as rows of their own."""
    return _by_data_set("methods", "Methods", results, row_names(results))


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
    rows = []
    for (source, target), direction in grouped(moved, lambda r: (r["transfer_from"], r["dataset"])).items():
        for label, group in grouped(direction, lambda r: r["arm"]).items():
            baseline = [r for r in direction if r["arm"] == _BASELINE]
            row = _row(
                group,
                baseline,
                fractions,
                lambda r, fraction: r["fraction"] == fraction,
                is_baseline=label == _BASELINE,
            )
            rows.append([f"{source} → {target}", label, *row])
    columns = ["direction", "first training", *(f"{100 * fraction:g}%" for fraction in fractions)]
    return Table("table4", "Table 4. Transfer, gone on with by plain SFT", columns, rows, _notes(moved))


def robustness(results: Sequence[Result]) -> Table:
    """For each data set and method: raw score, the score under each noise, their mean gap, and mean consistency."""
    scored = [r for r in results if r.get("robustness")]
    noises = list(dict.fromkeys(noise for r in scored for noise in r["robustness"]))
    name = row_names(scored)
    rows = []
    for (dataset, label), group in grouped(scored, lambda r: (r["dataset"], name(r))).items():
        under = [[r["robustness"][noise] for r in group if noise in r["robustness"]] for noise in noises]
        gaps = [one["gap"] for several in under for one in several]
        equal = [one["consistency"] for several in under for one in several]
        scores = [_percent(mean([one["micro_f1"] for one in several])) for several in under]
        raw = _percent(mean([r["micro_f1"] for r in group]))
        rows.append([dataset, label, raw, *scores, f"{100 * mean(gaps):+.1f}", f"{100 * mean(equal):.1f}%"])
    columns = ["data set", "trained with", "raw", *noises, "mean gap", "equal answers"]
    return Table("robustness", "Robustness: instructions bent at evaluation", columns, rows, _notes(scored))


TABLES: dict[str, Callable[[Sequence[Result]], Table]] = {
    "methods": methods, "table1": table1, "table2": table2, "table3": table3, "table4": table4,
    "robustness": robustness,
}  # fmt: skip


# Axes beside data set, method, noise and seed: a row's name says those that vary, so that no row mixes two of them.
_OTHER_AXES = ("omega", "distortion", "instructions", "fraction", "model")
# The baseline of a difference is the one trained with the same of these (sft feels no omega and no distortion).
_SHARED_WITH_BASELINE = ("instructions", "fraction", "model")


def row_names(results: Sequence[Result], without: Sequence[str] = ()) -> Callable[[Result], str]:
    """A function from a result to its row's name: arm, noise, and each other axis that varies in `results`."""
    bent = [r for r in results if r["noise"] != "none"]
    varying = [
        axis
        for axis in _OTHER_AXES
        if axis not in without and len({r[axis] for r in (results if axis in _SHARED_WITH_BASELINE else bent)}) > 1
    ]

    def name(result: Result) -> str:
        clean = result["noise"] == "none"
        parts = [result["arm"], *([] if clean or "noise" in without else [result["noise"]])]
        felt = [axis for axis in varying if axis in _SHARED_WITH_BASELINE or not clean]
        return ", ".join([*parts, *(f"{axis} {result[axis]}" for axis in felt)])

    return name


def _by_data_set(name: str, title: str, results: Sequence[Result], label: Callable[[Result], str]) -> Table:
    """Rows by `label`, `sft` first; columns are data sets, and their mean where there are several."""
    results = [r for r in results if not r["transfer_from"]]
    columns: list[Column] = list(dict.fromkeys((r["dataset"], inner) for r in results for inner in r["counts"]))
    baseline = [r for r in results if r["arm"] == _BASELINE]
    rows = []
    for text, group in sorted(grouped(results, label).items(), key=lambda item: item[1][0]["arm"] != _BASELINE):
        row = _row(group, baseline, columns, lambda r, c: r["dataset"] == c[0], inner=lambda c: c[1],
                   is_baseline=group[0]["arm"] == _BASELINE)  # fmt: skip
        means = [mean([r["micro_f1"] for r in group if r["dataset"] == d]) for d, _ in columns]
        average = [_percent(mean(means))] if len(columns) > 1 else []
        rows.append([text, *row, *(average if NOTHING not in row else [NOTHING] * len(average))])
    heads = [inner if outer == inner else f"{inner} (in {outer})" for outer, inner in columns]
    return Table(name, title, ["", *heads, *(["mean"] if len(columns) > 1 else [])], rows, _notes(results))


def _row(
    group: Sequence[Result],
    baseline: Sequence[Result],
    columns: Sequence[Any],
    belongs: Callable[[Result, Any], bool],
    *,
    inner: Callable[[Any], str | None] = lambda column: None,
    is_baseline: bool,
) -> list[str]:
    """The texts of one row: score, interval, and difference to the baseline where there is one."""
    scores: dict[int, Interval] = {}
    differences: dict[int, Interval] = {}
    for number, column in enumerate(columns):
        mine = [r for r in group if belongs(r, column)]
        ours = _runs(mine, inner(column))
        if not ours:
            continue
        scores[number] = statistics.score(list(ours.values()))
        beside = [r for r in baseline if all(r[axis] == mine[0][axis] for axis in _SHARED_WITH_BASELINE)]
        theirs = _runs([r for r in beside if belongs(r, column)], inner(column))
        shared = [seed for seed in ours if seed in theirs and len(ours[seed]) == len(theirs[seed])]
        if shared and not is_baseline:
            differences[number] = statistics.difference([ours[s] for s in shared], [theirs[s] for s in shared])
    corrected = statistics.holm({number: d.p for number, d in differences.items()})
    texts = []
    for number in range(len(columns)):
        if number not in scores:
            texts.append(NOTHING)
            continue
        score = scores[number]
        text = f"{100 * score.mean:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
        if number in differences:
            star = "*" if corrected[number] < _SIGNIFICANT else ""
            text += f" {100 * differences[number].mean:+.1f}{star}"
        texts.append(text)
    return texts


def _runs(results: Iterable[Result], inner: str | None) -> dict[int, Sequence[Sequence[int]]]:
    """Seed -> counts per example of the data set `inner`, or of the only one.

    Raises ValueError for two results of one seed: they differ in something that the table does not show.
    """
    runs: dict[int, Sequence[Sequence[int]]] = {}
    for result in results:
        if result["seed"] in runs:
            raise ValueError(f"a table's entry mixes two runs of seed {result['seed']} on {result['dataset']}")
        if result["counts"]:
            runs[result["seed"]] = result["counts"][inner or next(iter(result["counts"]))]
    return runs


def _notes(results: Sequence[Result]) -> list[str]:
    """What a reader of these scores must know."""
    seeds = sorted({r["seed"] for r in results})
    count = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    notes = [f"{count}; intervals are bootstraps over test examples and seeds"]
    if len(seeds) <= 3:
        notes.append(f"{count} alone prove{'s' if len(seeds) == 1 else ''} nothing: read the intervals")
    if results and any(r["arm"] == _BASELINE for r in results):
        notes.append("differences are to sft; * p < 0.05, Holm-corrected over the columns of a row")
    tuned = sorted({f"{r['arm']} on {r['dataset']}" for r in results if r.get("tuned")})
    if tuned:
        notes.append("tuned on the dev split of the same data set: " + ", ".join(tuned))
    told = dict.fromkeys(f"{r['dataset']}: {note}" for r in results for note in r.get("notes", []))
    return [*notes, *told]


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
