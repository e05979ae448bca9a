"""What trials on dev choose: the settings with which a tuned method is used on each data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anit_ds.experiments.cells import Cell, Chosen, Trial, cells
from anit_ds.experiments.grid import CompareConfig
from anit_ds.experiments.records import Cells
from anit_ds.files import write_json


def choose(trials: Sequence[Trial], results: Cells) -> Chosen:
    """The settings with the best dev score of each method on each data set; the first of equals."""
    best: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
    for key, settings, cell in trials:
        result = results.finished(cell)
        score = None if result is None else result["dev_micro_f1"]
        if score is not None and (key not in best or score > best[key][0]):
            best[key] = score, settings
    return {key: settings for key, (_, settings) in best.items()}


def tuned_cells(config: CompareConfig, trials: Sequence[Trial], chosen: Chosen) -> list[Cell]:
    """The grid's cells under what was chosen. Where all trials of a method on a data set failed, its cells there are
    left out: untuned, they would stand under its name for what it is not."""
    untuned = {trial.key for trial in trials} - set(chosen)
    return [cell for cell in cells(config, chosen) if cell.chosen_by not in untuned]


def write_sweeps(trials: Sequence[Trial], results: Cells, chosen: Chosen) -> None:
    """OUT/sweeps.json: every trial, its dev score, and whether it was chosen."""
    if not trials:
        return
    rows = []
    for key, settings, cell in trials:
        (label, dataset), result = key, results.read(cell) or {}
        row = {name: result.get(name) for name in ("dev_micro_f1", "status", "train_seconds", "config_hash")}
        rows.append(
            {"method": label, "dataset": dataset, "settings": settings, "chosen": chosen.get(key) == settings, **row}
        )
    write_json(results.out / "sweeps.json", {"trials": rows})
