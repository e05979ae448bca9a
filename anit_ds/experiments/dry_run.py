"""What a comparison would do: its cells, which of them are done, and how long the others will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anit_ds.experiments.cells import Cell, cells, tuning_cells
from anit_ds.experiments.estimate import device_here, passes_of, seconds
from anit_ds.experiments.grid import CompareConfig
from anit_ds.experiments.halving import standing
from anit_ds.experiments.records import Cells
from anit_ds.experiments.tuning import choose


@dataclass(frozen=True)
class Planned:
    """A cell of a comparison. `seconds` are those it will take; None where nothing is known of its data or model."""

    kind: Literal["trial", "cell"]
    name: str
    passes: int
    done: bool
    seconds: float | None


def plan(config: CompareConfig) -> list[Planned]:
    """Every trial and cell in the order in which they are trained, as far as survivors are known. Trains nothing."""
    results, device = Cells(Path(config.out)), device_here()
    tried = tuning_cells(config)
    trials = [trial.cell for trial in tried]
    grid = standing(config, cells(config, choose(tried, results)), results)
    done = {cell.name: result for cell in (*trials, *grid) if (result := results.finished(cell)) is not None}

    def planned(kind: Literal["trial", "cell"], cell: Cell) -> Planned:
        took = None if cell.name in done else seconds(cell, list(done.values()), device)
        return Planned(kind, cell.name, passes_of(cell.config), cell.name in done, took)

    return [planned("trial", cell) for cell in trials] + [planned("cell", cell) for cell in grid]
