"""A comparison from start to end: tune on dev, train the grid's cells, and write what came out.

OUT/results.json     every cell's record         OUT/cells/      the same with its counts per example and dev curve
OUT/sweeps.json      the trials on dev           OUT/runs/       the cells' run folders
OUT/tables/          Markdown, LaTeX, CSV        OUT/figures/    PNG, SVG          OUT/report.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anit_ds.errors import InputError
from anit_ds.experiments.cells import Cell, tuning_cells
from anit_ds.experiments.grid import CompareConfig
from anit_ds.experiments.halving import standing
from anit_ds.experiments.records import Cells, Records, Result
from anit_ds.experiments.running import Train, run_cells
from anit_ds.experiments.tuning import choose, tuned_cells, write_sweeps


class Listener(Protocol):
    """Who is told how a comparison goes."""

    def expect(self, what: str, grid: Sequence[Cell], done: Sequence[Result]) -> None:
        """`grid` is what follows; some of it is done already."""

    def ended(self, cell: Cell, result: Result) -> None:
        """A cell of it has ended, well or not."""


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended. `failed` counts this call's cells, trials on dev included."""

    cells: int
    done: int
    failed: int
    report: Path


def compare(
    config: CompareConfig, *, train: Train, listener: Listener, jobs: int | None = None, report_only: bool = False
) -> Outcome:
    """Train what is missing, by `train` in processes of their own, and report.

    Raises InputError when the folder cannot be written.
    """
    out = Path(config.out)
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: cannot write into {out} ({error.strerror})") from error
    results = Cells(out)
    failed: list[Cell] = []

    def run(what: str, todo: Sequence[Cell], keep: Callable[[Cell, Result], None] = lambda cell, result: None) -> None:
        def ended(cell: Cell, result: Result) -> None:
            if result["status"] == "failed":
                failed.append(cell)
            listener.ended(cell, result)
            keep(cell, result)

        listener.expect(what, todo, [result for cell in todo if (result := results.finished(cell)) is not None])
        run_cells(todo, results, train=train, jobs=jobs or config.jobs, launcher=config.launcher, tell=ended)

    trials = tuning_cells(config)
    if trials and not report_only:
        run("trials on dev", [trial.cell for trial in trials])
    chosen = choose(trials, results)
    write_sweeps(trials, results, chosen)
    every = tuned_cells(config, trials, chosen)
    begun: list[Cell] = []
    while True:  # once, but for survivors: their next cells follow from the results of these
        grid = standing(config, every, results)
        records = Records(config, grid, results, chosen)
        known = {cell.name for cell in begun}
        new = [cell for cell in grid if cell.name not in known]
        if report_only or not new:
            break
        run("cells", new, records.add)
        begun = grid
    records.write()
    made = records.read_whole()
    from anit_ds.experiments.report import write_report

    report = write_report(config, made, out, cells=len(grid))
    return Outcome(len(grid), sum(result["status"] == "done" for result in made), len(failed), report)
