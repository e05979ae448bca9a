"""The chart of methods: beside each other a score with its interval and the paired difference to `sft` with its own.

One chart for each data set. A method's name stands above its marks, so that the chart is narrow enough for a phone.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anit_ds.experiments.entries import BASELINE, Entry, Table
from anit_ds.experiments.statistics import Interval

_COLOURS = {False: "C0", True: "C1"}  # of a difference that is not, or is, significant


def size_of(table: Table, column: int) -> tuple[float, float]:
    """Width and height in inches."""
    return 3.9, 0.9 + 0.38 * sum(isinstance(row[column], Entry) for row in table.rows)


def draw_methods(figure: Figure, table: Table, column: int) -> bool:
    """Draw a table's column of entries; returns whether there was anything to draw."""
    entries = [(str(row[0]), row[column]) for row in table.rows]
    drawn = [(name, entry) for name, entry in entries if isinstance(entry, Entry)]
    compared = any(entry.difference for _, entry in drawn)
    left, *right = figure.subplots(1, 1 + compared, sharey=True, squeeze=False)[0]
    figure.suptitle(table.columns[column], fontsize=10)
    most = max((entry.seeds for _, entry in drawn), default=0)
    level = next((entry.score.mean for name, entry in drawn if name == BASELINE), None)
    if level is not None:
        left.axvline(100 * level, linestyle=":", linewidth=1, color="grey")
    for axes in right:
        axes.axvline(0, linestyle=":", linewidth=1, color="grey")
        axes.set_xlabel(f"less {BASELINE}, in points", fontsize=8)
        axes.patch.set_visible(False)  # or it would hide the end of a long name
    for place, (name, entry) in enumerate(drawn):
        of = f" ({entry.seeds} of {most} seeds)" if entry.seeds < most else ""
        label = left.text(0, place - 0.36, name + of, transform=left.get_yaxis_transform(), fontsize=8, va="center")
        label.set_in_layout(False)  # a long one may reach above the other panel's marks
        _mark(left, place, entry.score, "C0")
        for axes in right:
            if entry.difference is not None:
                _mark(axes, place, entry.difference, _COLOURS[entry.significant])
    for axes in (left, *right):
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.tick_params(labelsize=8)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
    left.set_xlabel(f"{'dev' if table.name == 'dev' else 'test'} micro-F1 (%)", fontsize=8)
    left.set_ylim(len(drawn) - 0.6, -0.7)
    return bool(drawn)


def _mark(axes: Axes, place: float, value: Interval, colour: str) -> None:
    if math.isfinite(value.low):
        axes.plot([100 * value.low, 100 * value.high], [place, place], color=colour, linewidth=2, alpha=0.7,
                  solid_capstyle="round")  # fmt: skip
    axes.plot([100 * value.mean], [place], marker="o", markersize=5, color=colour)
