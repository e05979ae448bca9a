"""How the benchmarks measure and tell: seconds of CPU and of wall clock, memory, tables, and JSON with the machine.

torch is looked at only where the benchmark has loaded it: noise.py measures processes that do without.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anit_ds.runfolder import versions

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Cost:
    """Seconds of one step."""

    cpu: float
    wall: float

    @property
    def counts(self) -> float:
        """What ratios are made of: the device's time on a GPU, CPU time elsewhere (other work stretches it less)."""
        return self.wall if _cuda() else self.cpu


def _cuda() -> Any:
    """torch.cuda where a GPU computes, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() else None


def time_of(step: Callable[[], object]) -> Cost:
    """Run `step` once, and on a GPU wait until the device is done."""
    cuda = _cuda()
    gc.collect()
    if cuda:
        cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if cuda:
        cuda.synchronize()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def median_ms(call: Callable[[], object], *, repeats: int, before: int = 1) -> float:
    """The median time of a short call, after some that do not count: by the GPU's own clock, or by the wall clock."""
    for _ in range(before):
        call()
    return statistics.median(_call_ms(call, _cuda()) for _ in range(repeats))


def _call_ms(call: Callable[[], object], cuda: Any) -> float:
    if not cuda:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    first, last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    elapsed: float = first.elapsed_time(last)
    return elapsed


def peak_mb_of(step: Callable[[], object]) -> float:
    """Run `step` once: its largest memory above what was held before it, in MB; NaN where the system does not tell.

    Not while timing: pages handed back before the step have to be faulted in again.
    """
    cuda = _cuda()
    gc.collect()
    if cuda:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        held = cuda.memory_allocated()
        step()
        cuda.synchronize()
        return float(cuda.max_memory_allocated() - held) / 2**20
    resident = _forget_peak()
    step()
    return _resident("VmHWM") - resident


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


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """The rows as a Markdown table: these columns, or all that the first row has."""
    columns = columns or list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """`content` beside the machine it was measured on; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    torch, cuda = sys.modules.get("torch"), _cuda()
    threads = {"threads": torch.get_num_threads()} if torch else {}
    device = cuda.get_device_name() if cuda else _processor()
    return {"device": device, "cores": os.cpu_count(), **threads, "versions": versions()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "CPU"
    return next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), "CPU")
