"""The tables of docs/results.md, made from the cells that are committed, so that no digit is copied by hand.

.venv/bin/cog -I examples/study -r docs/results.md      writes them anew; a test sees whether they are there
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from anit_ds.experiments.statistics import Interval, student

RESULTS = Path(__file__).parents[2] / "results"
SHORT = {
    "sft": "`sft`",
    "noisy_sft": "`noisy_sft`",
    "sft, twice the epochs": "`twice`",
    "sft, four times the epochs": "`sft`, four times",
    "ours, joint updates": "`joint`",
    "ours": "`ours`",
    "ours, signs": "`signs`",
    "ours, twice the epochs": "`ours`, twice",
}
"""What the page calls an arm; others keep their label."""
TASKS = {"sst2": "one label", "agnews": "one label", "14lap": "aspects", "14res": "aspects", "webnlg": "relations"}

Result = Mapping[str, Any]
Pairs = Mapping[str, Sequence[tuple[Result, Result]]]
"""By data set: the runs of two arms on the same seed."""


def finished(folder: str) -> list[Result]:
    """The records of a comparison's cells that are done."""
    read = (json.loads(file.read_text("utf-8")) for file in sorted((RESULTS / folder / "cells").glob("*.json")))
    return [record for record in read if record["status"] == "done"]


def by_set(folder: str, ours: str, *others: str) -> str:
    """A line per data set: the scores of the first of `others`, and what `ours` has beside each of them."""
    results = finished(folder)
    head = ["", "task", "test texts", "seeds", f"F1 of {SHORT[others[0]]}"]
    for other in others:
        head += [f"{SHORT[ours]} - {SHORT[other]}, F1", "NLL"]
    rows = []
    for dataset in TASKS:
        own = [r for r in results if r["dataset"] == dataset and r["arm"] == others[0]]
        tests = sorted({_test_examples(r) for r in own})
        row = [dataset, TASKS[dataset], ", ".join(map(str, tests))]
        for number, other in enumerate(others):
            pairs = _paired(results, ours, other).get(dataset, [])
            if number == 0:
                row += [str(len(pairs)), f"{100 * mean(theirs['micro_f1'] for _, theirs in pairs):.1f}"]
            row += [f"{mean(map(_apart, pairs)):+.1f}", f"{math.exp(mean(map(_log_ratio, pairs))):.2f}"]
        rows.append(row)
    return _table(head, rows)


def over_sets(folder: str, *asked: tuple[str, str], seeds: Iterable[int] = ()) -> str:
    """Pairs of arms over the data sets, each the mean of its seeds, with Student's 95% over the sets; of `seeds` alone
    where they are given."""
    results = [r for r in finished(folder) if not seeds or r["seed"] in seeds]
    rows = []
    for ours, other in asked:
        pairs = _paired(results, ours, other)
        f1, noisy, logs = (_over(pairs, figure) for figure in (_apart, _apart_under_noise, _log_ratio))
        nll = Interval(*(math.exp(end) for end in (logs.mean, logs.low, logs.high)))
        ahead = sum(mean(map(_apart, of_set)) > 0 for of_set in pairs.values())
        rows.append([
            f"{SHORT[ours]} - {SHORT[other]}", str(sum(map(len, pairs.values()))), _told(f1, "+.1f"),
            f"{ahead} of {len(pairs)}", _told(noisy, "+.1f"), _told(nll, ".2f"),
        ])  # fmt: skip
    return _table(["", "pairs", "F1", "sets ahead", "F1, replaced words", "NLL"], rows)


def runs(folder: str, *arms: str) -> str:
    """Every run: F1, NLL and, where it was measured, F1 under replaced words; a line per seed and arm."""
    results = finished(folder)
    sets = [dataset for dataset in TASKS if any(r["dataset"] == dataset for r in results)]
    rows = []
    for seed in sorted({r["seed"] for r in results}):
        for arm in arms:
            own = {r["dataset"]: r for r in results if r["seed"] == seed and r["arm"] == arm}
            if own:
                rows.append([str(seed), SHORT.get(arm, arm), *(_scores(own.get(dataset)) for dataset in sets)])
    return _table(["seed", "", *sets], rows)


def by_size(folder: str, *arms: str) -> str:
    """F1 and NLL by the number of training examples, one line per data set and arm; a mean where there are seeds."""
    results = finished(folder)
    sizes = sorted({r["max_train"] for r in results})
    rows = []
    for dataset in sorted({r["dataset"] for r in results}, key=list(TASKS).index):
        for arm in arms:
            own = [r for r in results if r["dataset"] == dataset and r["arm"] == arm]
            cells = ([r for r in own if r["max_train"] == size] for size in sizes)
            rows.append([f"{dataset}, {SHORT[arm]}", *map(_mean_scores, cells)])
    return _table(["training texts", *map(str, sizes)], rows)


def answers(folder: str, *arms: str) -> str:
    """Of one data set, by seed: F1, precision, recall, NLL and how many items were found."""
    results = finished(folder)
    rows = []
    for arm in arms:
        own = sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])
        counts = [[sum(column) for column in zip(*r["counts"][r["dataset"]], strict=True)] for r in own]
        shares = [(100 * hits / said, 100 * hits / gold) for hits, said, gold in counts]
        rows.append([
            SHORT.get(arm, arm), ", ".join(str(r["seed"]) for r in own),
            ", ".join(f"{100 * r['micro_f1']:.1f}" for r in own), *(", ".join(f"{x:.1f}" for x in of)
            for of in zip(*shares, strict=True)), ", ".join(f"{r['nll']:.2f}" for r in own),
            ", ".join(f"{hits} of {gold}" for hits, _, gold in counts),
        ])  # fmt: skip
    return _table(["", "seeds", "F1", "precision", "recall", "NLL", "found"], rows)


def _paired(results: Iterable[Result], ours: str, other: str) -> Pairs:
    arms = {arm: {(r["dataset"], r["seed"]): r for r in results if r["arm"] == arm} for arm in (ours, other)}
    found: dict[str, list[tuple[Result, Result]]] = {}
    for place in sorted(arms[ours].keys() & arms[other].keys()):
        found.setdefault(place[0], []).append((arms[ours][place], arms[other][place]))
    return found


def _over(pairs: Pairs, figure: Callable[[tuple[Result, Result]], float]) -> Interval:
    return student([mean(map(figure, of_set)) for of_set in pairs.values()])


def _apart(pair: tuple[Result, Result]) -> float:
    return 100 * (pair[0]["micro_f1"] - pair[1]["micro_f1"])


def _apart_under_noise(pair: tuple[Result, Result]) -> float:
    ours, other = (mean(told["micro_f1"] for told in r["robustness"].values()) for r in pair)
    return 100 * (ours - other)


def _log_ratio(pair: tuple[Result, Result]) -> float:
    return math.log(pair[0]["nll"] / pair[1]["nll"])


def _test_examples(result: Result) -> int:
    return len(result["counts"][result["dataset"]])


def _scores(result: Result | None) -> str:
    if result is None:
        return ""
    noisy = [f"{100 * told['micro_f1']:.1f}" for told in result["robustness"].values()]
    return ", ".join([f"{100 * result['micro_f1']:.1f}", _nll(result["nll"]), *noisy])


def _mean_scores(results: Sequence[Result]) -> str:
    if not results:
        return ""
    return f"{100 * mean(r['micro_f1'] for r in results):.1f}, {_nll(mean(r['nll'] for r in results))}"


def _nll(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _told(interval: Interval, form: str) -> str:
    bare = form.removeprefix("+")
    ends = f" ({interval.low:{bare}} to {interval.high:{bare}})" if math.isfinite(interval.low) else ""
    return f"{interval.mean:{form}}{ends}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield "| " + " | ".join(head) + " |"
        yield "|" + "---|" * len(head)
        for row in rows:
            yield "| " + " | ".join(row) + " |"

    return "\n".join(lines())


if __name__ == "__main__":
    sys.exit(__doc__)
