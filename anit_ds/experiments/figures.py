"""The paper's figures from the cells of a comparison: 2a omega against F1, 2b and 2c training time against F1.

Each function draws into matplotlib's axes what `results` hold and returns whether there was anything to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anit_ds.experiments.tables import grouped, mean, row_names

# The text of an SVG stays text, and its ids do not change from one drawing to the next.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anit",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}

Result = Mapping[str, Any]


def omega(axes: Axes, results: Sequence[Result]) -> bool:
    """Figure 2a: mean test micro-F1 against the noise level, a line for each method, noise and data set."""
    name = row_names(results, without=("omega",))
    results = [r for r in results if r["micro_f1"] is not None]
    bent = [r for r in results if r["noise"] not in ("none", "opposite")]
    lines = grouped(bent, lambda r: (r["dataset"], name(r)))
    several_sets = len({r["dataset"] for r in results}) > 1
    for (dataset, label), group in lines.items():
        at = grouped(group, lambda r: r["omega"])
        points = sorted((level, 100 * mean([r["micro_f1"] for r in some])) for level, some in at.items())
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{dataset}, {label}" if several_sets else label)
    plain = grouped([r for r in results if r["noise"] == "none"], lambda r: (r["dataset"], name(r)))
    for ((dataset, label), group), style in zip(plain.items(), cycle((":", "--", "-.")), strict=False):
        level = 100 * mean([r["micro_f1"] for r in group])
        axes.axhline(level, linestyle=style, color="grey", label=f"{dataset}, {label}" if several_sets else label)
    axes.set(xlabel="omega: share of the words that the noise touches", ylabel="test micro-F1 (%)")
    if lines or plain:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return bool(lines or plain)


def time_against_f1(axes: Axes, results: Sequence[Result]) -> bool:
    """Figures 2b, 2c: mean training time against mean test micro-F1 of each method (its passes in the legend)."""
    scored = [r for r in results if not r["transfer_from"] and r["micro_f1"] is not None]
    groups = grouped(scored, row_names(results))
    for (label, group), marker in zip(groups.items(), cycle("osD^vPX<>"), strict=False):
        x, y = mean([r["train_seconds"] for r in group]), 100 * mean([r["micro_f1"] for r in group])
        # Beside the axes and by shape: methods that cost and score the same lie on top of each other.
        axes.scatter(x, y, s=40, alpha=0.7, marker=marker, label=f"{label} ({group[0]['passes']})")
    axes.margins(0.15)
    axes.set(xlabel="training time (s); in brackets: passes per step", ylabel="test micro-F1 (%)")
    if groups:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return bool(groups)


def dev_curves(axes: Axes, results: Sequence[Result]) -> bool:
    """Dev micro-F1 against the optimizer step, a line for each run."""
    name = row_names(results)
    drawn = [r for r in results if len(r["dev_curve"]) > 1]
    for r in drawn:
        axes.plot(*zip(*r["dev_curve"], strict=True), marker=".", linewidth=1, label=f"{name(r)}, seed {r['seed']}")
    axes.set(xlabel="optimizer step", ylabel="dev micro-F1")
    if 0 < len(drawn) <= 16:
        axes.legend(fontsize=6)
    return bool(drawn)


def draw(
    what: Callable[[Axes, Sequence[Result]], bool], results: Sequence[Result], title: str, stem: Path
) -> Path | None:
    """STEM.svg and STEM.png of a figure; returns the SVG, or None where there was nothing to draw."""

    def one_panel(figure: Figure, results: Sequence[Result]) -> bool:
        axes = figure.subplots()
        axes.set_title(title, fontsize=9)
        return what(axes, results)

    return draw_panels(one_panel, results, stem, size=(5.6, 3.4))


def draw_panels(
    what: Callable[[Figure, Any], bool], drawn: Any, stem: Path, size: tuple[float, float] = (9, 8)
) -> Path | None:
    """The same of a figure with panels of its own, which `what` makes of `drawn`; `size` in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        if not what(figure, drawn):
            return None
        stem.parent.mkdir(parents=True, exist_ok=True)
        svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
        figure.savefig(svg, bbox_inches="tight", metadata={"Date": None})
        figure.savefig(png, dpi=160, bbox_inches="tight", metadata={"Software": None})
    return svg
