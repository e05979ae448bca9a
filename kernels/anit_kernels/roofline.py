"""What machine code implies on a GPU: the time an element costs by bytes, by issue slots and by the busiest unit.

Bounds from data sheets, not measurements: a kernel can be slower, for want of bytes in flight for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """Multiprocessors, sustained clock, memory bandwidth, and the lanes a clock that each unit of an SM starts."""

    name: str
    processors: int
    gigahertz: float
    terabytes_a_second: float
    lanes: Mapping[str, int]


# An SM issues for 128 lanes a clock. Rates of the units as in the table of arithmetic throughput of the CUDA C++
# programming guide, taken low where it leaves room: a wide multiply at half the rate of a narrow one, a conversion of a
# 16-bit integer at the slowest rate of any conversion to float32.
_SM_90 = {"issue": 128, "fma": 128, "logic": 64, "multiply": 32, "conversion": 16, "memory": 32}
GPUS = {
    "sm_80": Gpu("A100", 108, 1.41, 2.04, _SM_90 | {"fma": 64}),
    "sm_90": Gpu("H100", 132, 1.70, 3.35, _SM_90),
    "sm_100": Gpu("B200", 148, 1.85, 8.0, _SM_90),
}

REGISTERS_AN_SM = 65536
WARPS_AN_SM = 64
VECTOR_REGISTERS_A_SIMD = 512
WAVES_A_SIMD = 8


@dataclass(frozen=True, slots=True)
class Bound:
    """Picoseconds an element, the whole GPU working; `binds` names the largest: bandwidth, issue or a unit."""

    bandwidth_ps: float
    issue_ps: float
    binds: str


def bound(gpu: Gpu, bytes_per_element: float, instructions: Mapping[str, float]) -> Bound:
    """From bytes and instructions an element; `instructions` by unit, without `issue`, which is their sum."""
    lanes_a_picosecond = gpu.processors * gpu.gigahertz / 1000
    times = {name: count / gpu.lanes[name] / lanes_a_picosecond for name, count in instructions.items()}
    times["issue"] = sum(instructions.values()) / gpu.lanes["issue"] / lanes_a_picosecond
    bandwidth = bytes_per_element / gpu.terabytes_a_second
    busiest = max(times, key=lambda name: times[name])
    return Bound(bandwidth, times[busiest], "bandwidth" if bandwidth >= times[busiest] else busiest)


def resident_warps(target: str, registers: int, warps: int) -> int:
    """Warps an SM (waves a compute unit) holds at once, by registers alone; whole programs only."""
    if target.startswith("gfx"):
        waves = min(WAVES_A_SIMD, VECTOR_REGISTERS_A_SIMD // (-(-registers // 8) * 8)) * 4
        return waves // warps * warps
    fit = min(WARPS_AN_SM, REGISTERS_AN_SM // (-(-registers // 8) * 8 * 32))
    return fit // warps * warps
