"""`anit compare`: tune on dev, train the grid's cells, and write results, tables, figures and a report.

OUT/results.json     every cell's record         OUT/cells/      the same with its counts an example and dev curve
OUT/sweeps.json      the trials on dev           OUT/runs/       the cells' run folders
OUT/tables/          Markdown, LaTeX, CSV        OUT/figures/    PNG, SVG          OUT/report.html
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from anit_ds.errors import InputError
from anit_ds.experiments.estimate import clock, passes_of, seconds
from anit_ds.experiments.grid import Cell, CompareConfig, cells, tuning_cells
from anit_ds.experiments.running import Cells, Result, run_cells
from anit_ds.files import write_json
from anit_ds.runfolder import versions

_RECORD_ONLY = ("counts", "dev_curve")  # what cells/NAME.json has beside a record of results.json


def compare(config: CompareConfig, *, jobs: int | None = None, report_only: bool = False) -> int:
    """Run what is missing and report; returns the number of cells that failed.

    Raises InputError when the folder cannot be written.
    """
    out = Path(config.out)
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: cannot write into {out} ({error.strerror})") from error
    results, progress = Cells(out), _Progress()
    jobs = jobs or config.jobs
    trials = tuning_cells(config)
    if trials and not report_only:
        tried = [cell for _, _, cell in trials]
        progress.expect("trials on dev", tried, results)
        run_cells(tried, results, jobs=jobs, launcher=config.launcher, tell=progress.tell)
    chosen = _choose(trials, results)
    grid = cells(config, {key: best["settings"] for key, best in chosen.items()})

    def with_choice(cell: Cell, result: Result) -> Result:
        return {**result, "tuned": chosen.get((cell.arm, cell.dataset), {}).get("settings")}

    # Read once: a large grid's counts are hundreds of megabytes, and results.json, written after each cell, has none.
    here = ((cell, result) for cell in grid if (result := results.read(cell)) is not None)
    records = {cell.hash: _record(with_choice(cell, result)) for cell, result in here}

    def tell(cell: Cell, result: Result) -> None:
        progress.tell(cell, result)
        records[cell.hash] = _record(with_choice(cell, result))
        _write_results(config, grid, records)

    if not report_only:
        progress.expect("cells", grid, results)
        run_cells(grid, results, jobs=jobs, launcher=config.launcher, tell=tell)
    _write_results(config, grid, records)
    made = [with_choice(cell, result) for cell in grid if (result := results.read(cell)) is not None]
    _write_sweeps(out, trials, results, chosen)
    from anit_ds.experiments.report import write_report

    done = sum(result["status"] == "done" for result in made)
    click.echo(f"{done} of {len(grid)} cells done; report: {write_report(config, made, out)}")
    return len(progress.failed)


def describe_plan(config: CompareConfig) -> str:
    """The cells, which are done, and how long the others will take: what --dry-run prints."""
    results = Cells(Path(config.out))
    trials = [cell for _, _, cell in tuning_cells(config)]
    grid = cells(config)
    done = [r for cell in (*trials, *grid) if (r := results.finished(cell)) is not None]
    finished = {result["config_hash"] for result in done}
    gpu, threads = _device()
    lines, known, unknown = [], [], 0
    for kind, cell in [("trial", c) for c in trials] + [("cell", c) for c in grid]:
        if cell.hash in finished:
            estimate = "done"
        elif (took := seconds(cell, done, gpu=gpu, threads=threads)) is None:
            unknown += 1
            estimate = "time unknown (its data are not here)"
        else:
            known.append(took)
            estimate = f"about {clock(took)}"
        passes = passes_of(cell.config)
        lines.append(f"{kind:5} {cell.name:60} {passes} pass{'es' if passes > 1 else ''} a step, {estimate}")
    left = []
    if known:
        basis = "from the finished cells" if done else "a rough count of operations, until a cell is finished"
        left.append(f"about {clock(sum(known))} to go ({basis})")
    if unknown:
        left.append(f"{unknown} of unknown time")
    lines.append(f"{len(trials) + len(grid)} cells, {len(done)} done; {', '.join(left) or 'nothing to go'}")
    return "\n".join(lines)


class _Progress:
    """A line a finished cell, with what is left."""

    def __init__(self) -> None:
        self.failed: list[Cell] = []
        self._left: dict[str, Cell] = {}
        self._done: list[Result] = []
        self._total = 0

    def expect(self, what: str, grid: Sequence[Cell], results: Cells) -> None:
        found = [results.finished(cell) for cell in grid]
        self._left = {cell.hash: cell for cell, result in zip(grid, found, strict=True) if result is None}
        self._done, self._total = [result for result in found if result is not None], len(grid)
        click.echo(f"{len(grid)} {what}, {len(self._done)} of them done")

    def tell(self, cell: Cell, result: Result) -> None:
        self._left.pop(cell.hash, None)
        place = f"[{self._total - len(self._left)}/{self._total}] {cell.name}"
        if result["status"] == "failed":
            self.failed.append(cell)
            click.echo(f"{place}: FAILED: {result['error']} (see {cell.config.out}/output.txt)", err=True)
            return
        self._done.append(result)
        gpu, threads = _device()
        left = [seconds(c, self._done, gpu=gpu, threads=threads) for c in self._left.values()]
        eta = f", about {clock(sum(s for s in left if s))} left" if left else ""
        scores = [f"{name} {result[key]:.4f}" for name, key in (("test", "micro_f1"), ("dev", "dev_micro_f1"))
                  if result[key] is not None]  # fmt: skip
        click.echo(f"{place}: micro-F1 {', '.join(scores)}, {clock(result['seconds'])}{eta}")


def _choose(trials: Iterable[tuple[tuple[str, str], dict[str, Any], Cell]], results: Cells) -> dict[Any, Any]:
    """(label, data set) -> the settings with the best dev score, and that score. The first of equals."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for key, settings, cell in trials:
        result = results.finished(cell)
        score = None if result is None else result["dev_micro_f1"]
        if score is not None and (key not in best or score > best[key]["dev_micro_f1"]):
            best[key] = {"settings": settings, "dev_micro_f1": score}
    return best


def _record(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in _RECORD_ONLY}


def _write_results(config: CompareConfig, grid: Sequence[Cell], records: Mapping[str, Result]) -> None:
    """results.json: the records that there are, in the grid's order."""
    made = [records[cell.hash] for cell in grid if cell.hash in records]
    about = {"title": config.title, "versions": versions(), "missing": len(grid) - len(made)}
    write_json(Path(config.out) / "results.json", {**about, "cells": made})


def _write_sweeps(out: Path, trials: Sequence[Any], results: Cells, chosen: Mapping[tuple[str, str], Any]) -> None:
    if not trials:
        return
    rows = []
    for (label, dataset), settings, cell in trials:
        result = results.read(cell) or {}
        row = {key: result.get(key) for key in ("dev_micro_f1", "status", "train_seconds", "config_hash")}
        picked = chosen.get((label, dataset), {}).get("settings") == settings
        rows.append({"method": label, "dataset": dataset, "settings": settings, "chosen": picked, **row})
    write_json(out / "sweeps.json", {"trials": rows})


def _device() -> tuple[bool, int]:
    """(a GPU is here, CPU threads a cell computes with), without importing torch."""
    gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    return gpu, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
