"""Runs cells: several at once where there is room, each in a process of its own, each result written when it is there.

A cell that has a result is not run again; what was interrupted goes on from its checkpoint; what fails is recorded, and
the rest goes on.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from anit_ds.experiments.cells import Cell
from anit_ds.experiments.records import Cells, Result
from anit_ds.files import write_atomically

Train = Callable[[str], None]
"""`anit train` of the configuration in a file: called in a process of its own, which ends with its exit code. A
function that a fresh process can import by its name."""


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
    train: Train,
    jobs: int,
    launcher: str | None,
    tell: Callable[[Cell, Result], None],
) -> None:
    """Train every cell of `todo` that has no result; `tell` is called with each result as it comes.

    With a launcher, it and not `train` starts the cells. A cell waits for its source, and fails with it. TERM and
    Ctrl-C make the running cells save, and end with KeyboardInterrupt.
    """
    waiting = [cell for cell in todo if results.finished(cell) is None]
    running: dict[Any, _Running] = {}
    failed: set[str] = set()
    free = list(range(jobs))
    context = _context(launcher)

    def ended(cell: Cell, result: Result) -> None:
        if result["status"] == "failed":
            failed.add(cell.hash)
        tell(cell, result)

    with _term_as_interrupt():
        try:
            while waiting or running:
                while free and (cell := _ready(waiting, running.values())) is not None:
                    waiting = [c for c in waiting if c is not cell]
                    if cell.source is not None and cell.source.hash in failed:
                        ended(cell, results.keep_failure(cell, f"its source {cell.source.name} failed"))
                        continue
                    slot = free.pop()
                    process = _start(context, cell, train, launcher, slot)
                    running[process.sentinel] = _Running(cell, process, slot, time.monotonic())
                for sentinel in wait(list(running)) if running else []:
                    one = running.pop(sentinel)
                    one.process.join()
                    free.append(one.slot)
                    ended(one.cell, results.keep(one.cell, time.monotonic() - one.started, one.process.exitcode))
        except KeyboardInterrupt:
            for one in running.values():
                one.process.terminate()
            for one in running.values():
                one.process.join()
            raise


def _ready(waiting: Sequence[Cell], running: Iterable[_Running]) -> Cell | None:
    """The first cell that has no source, or whose source has ended."""
    still_open = {cell.hash for cell in waiting} | {one.cell.hash for one in running}
    return next((cell for cell in waiting if cell.source is None or cell.source.hash not in still_open), None)


@contextmanager
def _term_as_interrupt() -> Iterator[None]:
    """TERM raises KeyboardInterrupt, as Ctrl-C does, where signals are this thread's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _context(launcher: str | None) -> Any:
    """Forks of a process that has imported the trainer once; fresh processes where a GPU forbids forking. A process
    that waits for a launcher needs nothing of it."""
    if launcher is not None:
        return multiprocessing.get_context("forkserver")
    import torch

    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anit_ds.commands.entry", "anit_ds.training"])  # in the order of `anit train`
    return context


def _start(context: Any, cell: Cell, train: Train, launcher: str | None, slot: int) -> BaseProcess:
    folder = Path(cell.config.out)
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "asked.yaml"  # beside the resolved config.yaml, which `anit train` writes
    write_atomically(asked, cell.config.to_yaml())
    process: BaseProcess = context.Process(target=_in_cell, args=(str(asked), train, launcher, slot))
    process.start()
    return process


def _in_cell(asked: str, train: Train, launcher: str | None, slot: int) -> None:
    """In the cell's process: train, with the output in the run's folder."""
    # A terminal's Ctrl-C comes to the comparison too, which then tells us by TERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(Path(asked).with_name("output.txt"), "a", encoding="utf-8") as output:
        # A comparison that was killed may have left this cell's process behind, which saves and ends: not two of them
        # in one folder. The lock is the open file's, so it lasts as long as anything that writes there.
        with suppress(OSError):  # a file system without locks
            fcntl.flock(output, fcntl.LOCK_EX)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if launcher is not None:
        sys.exit(_launched([*shlex.split(launcher), "anit", "train", asked]))
    os.environ.update(_device_of(slot))
    train(asked)


def _launched(command: list[str]) -> int:
    """The exit code of a launcher, which gets every TERM of ours, and one from the kernel should we be killed.

    A session of its own keeps a terminal's Ctrl-C from it: beside the TERM it would count as the second request.
    """
    launchers: list[subprocess.Popen[bytes]] = []
    told = threading.Event()

    def pass_on(number: int, frame: Any) -> None:
        told.set()
        for launcher in launchers:
            launcher.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    tether = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    launchers.append(subprocess.Popen([*tether, *command], start_new_session=True))
    if told.is_set():  # before it was there
        launchers[0].terminate()
    return launchers[0].wait()


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
