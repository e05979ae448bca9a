"""Runs cells: several at once where there is room, each in a process of its own, each result written when it is there.

A finished cell is a file OUT/cells/NAME.json: its record, its counts an example, and its dev curve. What has one is not
run again; what was interrupted goes on from its checkpoint; what fails is recorded, and the rest goes on.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from anit_ds.experiments.grid import Cell
from anit_ds.experiments.statistics import example_counts
from anit_ds.files import write_atomically, write_json
from anit_ds.runfolder import RunFolder

Result = dict[str, Any]
"""One cell's record in results.json; `status` is "done" or "failed"."""


class Cells:
    """The results of a comparison's cells in its folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / "cells"

    def read(self, cell: Cell) -> Result | None:
        """What is on record for this cell, a failure too; counts and dev curve included."""
        file = self.folder / f"{cell.name}.json"
        if not file.is_file():
            return None
        content: Result = json.loads(file.read_text(encoding="utf-8"))
        return content if content["config_hash"] == cell.hash else None

    def finished(self, cell: Cell) -> Result | None:
        """The result of a cell that is done, or None."""
        result = self.read(cell)
        return result if result is not None and result["status"] == "done" else None

    def keep(self, cell: Cell, seconds: float) -> Result:
        """Turn a cell's run folder into its result and write it; the run's checkpoints are let go."""
        run = RunFolder(cell.config.out)
        if not run.summary.is_file():
            return self.keep_failure(cell, _last_words(run.path))
        result = {**_result(cell, run, self.out), "seconds": round(seconds, 1)}
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        write_json(self.folder / f"{cell.name}.json", result)
        return result

    def keep_failure(self, cell: Cell, error: str) -> Result:
        result = {**cell.axes(), "config_hash": cell.hash, "status": "failed", "error": error}
        write_json(self.folder / f"{cell.name}.json", result)
        return result


@dataclass(frozen=True)
class _Running:
    cell: Cell
    process: BaseProcess
    slot: int
    started: float


def run_cells(
    todo: Sequence[Cell],
    results: Cells,
    *,
    jobs: int,
    launcher: str | None,
    tell: Callable[[Cell, Result], None],
) -> None:
    """Train every cell of `todo` that has no result; `tell` is called with each result as it comes.

    A cell waits for its source, and fails with it. TERM and Ctrl-C make the running cells save, and end with
    KeyboardInterrupt.
    """
    waiting = [cell for cell in todo if results.finished(cell) is None]
    failed: set[str] = set()
    running: dict[Any, _Running] = {}
    free = list(range(jobs))
    context = _context()
    previous = signal.signal(signal.SIGTERM, _interrupt) if _in_main_thread() else None
    try:
        while waiting or running:
            open_sources = {cell.hash for cell in waiting} | {one.cell.hash for one in running.values()}
            ready = (c for c in waiting if c.source is None or c.source.hash not in open_sources)
            while free and (cell := next(ready, None)) is not None:
                waiting = [c for c in waiting if c is not cell]
                if cell.source is not None and cell.source.hash in failed:
                    failed.add(cell.hash)
                    tell(cell, results.keep_failure(cell, f"its source {cell.source.name} failed"))
                    break
                slot = free.pop()
                process = _start(context, cell, launcher, slot)
                running[process.sentinel] = _Running(cell, process, slot, time.monotonic())
            if not running:
                continue
            for sentinel in wait(list(running)):
                one = running.pop(sentinel)
                one.process.join()
                free.append(one.slot)
                result = results.keep(one.cell, time.monotonic() - one.started)
                if result["status"] == "failed":
                    failed.add(one.cell.hash)
                tell(one.cell, result)
    except KeyboardInterrupt:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.join()
        raise
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _context() -> Any:
    """Forks of a process that has imported the trainer once; fresh processes where a GPU forbids forking."""
    import torch

    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anit_ds.training"])
    return context


def _start(context: Any, cell: Cell, launcher: str | None, slot: int) -> BaseProcess:
    folder = Path(cell.config.out)
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "asked.yaml"  # beside the resolved config.yaml, which `anit train` writes
    write_atomically(asked, cell.config.to_yaml())
    process: BaseProcess = context.Process(target=_train, args=(str(asked), launcher, slot))
    process.start()
    return process


def _train(asked: str, launcher: str | None, slot: int) -> None:
    """In the cell's process: `anit train`, its output in the run's folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(Path(asked).with_name("output.txt"), "a", encoding="utf-8") as output:
        # A comparison that was killed may have left this cell's process behind, which saves and ends: not two of them
        # in one folder. The lock is the open file's, so it lasts as long as anything that writes there.
        with suppress(OSError):  # a file system without locks
            fcntl.flock(output, fcntl.LOCK_EX)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if launcher is not None:
        sys.exit(subprocess.call([*shlex.split(launcher), "anit", "train", asked]))
    os.environ.update(_device_of(slot))
    sys.argv = ["anit", "train", asked]
    from anit_ds.commands.cli import main

    main()


def _device_of(slot: int) -> dict[str, str]:
    """One of the visible GPUs for each cell that runs at once."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",") if visible else []
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}


def _end_with_parent() -> None:
    """However the comparison ends, its cells save and end with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _result(cell: Cell, run: RunFolder, out: Path) -> Result:
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    after = summary["after"] or {}
    by_set = {name: report["micro_f1"] for name, report in after.get("datasets", {}).items()}
    return {
        **cell.axes(),
        "split": "test",
        "status": "done",
        "micro_f1": after.get("micro_f1"),
        "datasets": by_set,
        "parse_failures": after.get("parse_failures"),
        "dev_micro_f1": (summary["dev"] or {}).get("micro_f1"),
        "beta": summary["beta"],
        "robustness": summary["robustness"],
        "passes": summary["passes"],
        "steps": summary["steps"],
        "train_seconds": summary["train_seconds"],
        "ranks": summary["ranks"],
        "dtype": summary["dtype"],
        "config_hash": cell.hash,
        "run": os.path.relpath(run.path, out),
        "notes": after.get("notes", []),
        "counts": _counts(run.eval / "predictions-test.jsonl"),
        "dev_curve": _dev_curve(run.metrics),
    }


def _counts(predictions: Path) -> dict[str, list[list[int]]]:
    """Data set -> [hits, predicted, gold] of each test example, which the intervals are drawn from."""
    counts: dict[str, list[list[int]]] = {}
    if predictions.is_file():
        for line in predictions.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            counts.setdefault(row["dataset"], []).append(example_counts(row))
    return counts


def _dev_curve(metrics: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["dev/micro_f1"]) for line in lines if "dev/micro_f1" in line]


def _last_words(folder: Path) -> str:
    """The last line that a failed run printed."""
    output = folder / "output.txt"
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n") if output.is_file() else []
    said = [line.rpartition("\r")[2].strip() for line in lines]
    return next((line for line in reversed(said) if line), "it printed nothing")
