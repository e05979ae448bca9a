"""What a step costs: seconds of CPU and of wall clock, and the memory it needs above what was there before it."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Cost:
    """Seconds of one step."""

    cpu: float
    wall: float

    @property
    def counts(self) -> float:
        """What ratios are made of: the device's time on a GPU, CPU time elsewhere (other work stretches it less)."""
        return self.wall if torch.cuda.is_available() else self.cpu


def time_of(step: Callable[[], object]) -> Cost:
    """Run `step` once, and on a GPU wait until the device is done."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def peak_mb_of(step: Callable[[], object]) -> float:
    """Run `step` once: its largest memory above what was held before it, in MB; NaN where the system does not tell.

    Not while timing: pages handed back before the step have to be faulted in again.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _forget_peak()
    step()
    return _resident("VmHWM") - before


def _forget_peak() -> float:
    """Hand freed memory back, make the kernel forget the peak so far, and return what is resident, in MB."""
    try:
        # Or a step would live on pages that an earlier one has left in the heap, and seem to need none.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")
    except (OSError, AttributeError):  # not Linux, or not glibc
        return math.nan
    return _resident("VmRSS")


def _resident(name: str) -> float:
    if not _STATUS.exists():
        return math.nan
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def spread(values: Sequence[float]) -> float:
    """The interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Some columns of the rows as a Markdown table."""
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    import deepspeed
    import peft
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {package.__name__: package.__version__ for package in (torch, transformers, peft, deepspeed)}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "CPU"
    return next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), "CPU")
