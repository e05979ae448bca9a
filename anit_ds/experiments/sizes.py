"""The size curve: what each method's scores are after so many training examples, where `grid.sizes` has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from anit_ds.experiments.entries import Result
from anit_ds.experiments.tables import grouped, mean, row_names

_MARKERS = "osD^vPX<>"


def draw_sizes(figure: Figure, results: Sequence[Result]) -> bool:
    """Micro-F1 and NLL of the gold answers (rows) against the training examples, on test or else on dev, for each data
    set (columns): a line through each method's means, a faint mark for each seed.

    Returns whether there was anything to draw: results of two sizes or more.
    """
    sized = [r for r in results if r["max_train"] is not None and not r["transfer_from"]]
    if len({r["max_train"] for r in sized}) < 2:
        return False
    name = row_names(sized, without=("max_train",))
    split, prefix = ("test", "") if any(r["micro_f1"] is not None for r in sized) else ("dev", "dev_")
    drawn = {f"{split} micro-F1 (%)": (f"{prefix}micro_f1", 100), f"{split} NLL": (f"{prefix}nll", 1)}
    by_set = grouped(sized, lambda r: r["dataset"])
    panels = figure.subplots(len(drawn), len(by_set), sharex="col", squeeze=False)
    # An arm that a set lacks takes no other's look: each has its own in all panels.
    arms = list(grouped(sized, name))
    looks = {arm: {"marker": _MARKERS[n % len(_MARKERS)], "color": f"C{n}"} for n, arm in enumerate(arms)}
    for (dataset, of_set), column in zip(by_set.items(), panels.T, strict=True):
        for arm, group in grouped(of_set, name).items():
            for axes, (key, scale) in zip(column, drawn.values(), strict=True):
                points = [(_examples(r), scale * r[key]) for r in group if r.get(key) is not None]
                _draw_line(axes, points, arm, looks[arm])
        column[0].set_title(dataset)
        column[-1].set_xlabel("training examples")
        _mark_sizes(column[-1], sorted(set(map(_examples, of_set))))
    for axes, label in zip(panels[:, 0], drawn, strict=True):
        axes.set_ylabel(label)
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return True


def _examples(result: Result) -> int:
    """What a run was trained on: all there are, where that is fewer than it was to have."""
    return int(result.get("train_examples", result["max_train"]))


def _draw_line(axes: Axes, points: Sequence[tuple[int, float]], label: str, look: Mapping[str, Any]) -> None:
    at = {size: mean([y for x, y in points if x == size]) for size in sorted({x for x, _ in points})}
    axes.plot(list(at), list(at.values()), markersize=4, label=label, **look)
    of_seeds = [x for x, _ in points], [y for _, y in points]
    axes.scatter(*of_seeds, s=12, alpha=0.3, **look)


def _mark_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
