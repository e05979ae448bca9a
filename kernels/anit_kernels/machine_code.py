"""What a compiled kernel's machine code says: registers, spills, and the instructions of its bulk loops.

The bulk loops are the innermost ones that draw random numbers; everything a kernel does for each element is in them.
They are recognised by the generator's multiplications, which no other loop contains.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The first multiplier of Philox, as nvdisasm prints it (a signed immediate).
SASS_GENERATOR = re.compile(r"IMAD(\.WIDE|\.HI)?\.U32\S* .*-0x2daee0ad")
GCN_GENERATOR = re.compile(r"v_mad_u64_u32|v_mul_hi_u32")

# Which unit issues an instruction; what is not named here runs on the integer and logic unit.
SASS_PIPES = {
    "fma": re.compile(r"(FFMA|FADD|FMUL|HADD2|HFMA2|HMUL2)\b"),
    "multiply": re.compile(r"(IMAD|IDP)(?!\.(MOV|U32|SHL|IADD|X)\b)"),
    "conversion": re.compile(r"(I2F|F2I|F2F|I2I|MUFU)\b"),
    "memory": re.compile(r"(LDG|STG|LDS|STS|LD|ST|LDC)\b"),
}
GCN_PIPES = {
    "fma": re.compile(r"v_(pk_)?(fma|fmac|add|sub|mul|mac)_f"),
    "multiply": re.compile(r"v_(mad_u64|mul_hi|mul_lo)"),
    "conversion": re.compile(r"v_cvt"),
    "memory": re.compile(r"(global|buffer|flat|ds)_"),
}
GCN_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "short": 16, "ubyte": 8, "byte": 8}


@dataclass(frozen=True)
class MachineCode:
    """Registers and memory of a thread, and the instructions of each bulk loop, one text a line."""

    registers: int
    spills: int
    shared: int
    loops: list[list[str]]
    pipes: dict[str, re.Pattern[str]]
    access: Callable[[str], tuple[str, int] | None]

    def instructions(self) -> int:
        """In one turn of each bulk loop."""
        return sum(len(loop) for loop in self.loops)

    def by_pipe(self) -> Counter[str]:
        """The same, by the unit that executes them; `logic` is the rest."""
        return Counter(
            next((name for name, pattern in self.pipes.items() if pattern.match(text)), "logic")
            for loop in self.loops
            for text in loop
        )

    def accesses(self, kind: str) -> list[int]:
        """Bits of each `load` or `store` of the bulk loops, those of the byte masks left out."""
        found = (self.access(text) for loop in self.loops for text in loop)
        return [bits for name, bits in filter(None, found) if name == kind and bits > 8]


def read_nvidia(cubin: bytes) -> MachineCode:
    """From a cubin, through the two tools that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "kernel.cubin")
        Path(file).write_bytes(cubin)
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file)
        sass = _run(tools / "nvdisasm", "-c", file)
    resources = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif text := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(text[1])
    return MachineCode(
        registers=int(resources["REG"]),
        spills=int(resources["LOCAL"]) + int(resources["STACK"]),
        shared=int(resources["SHARED"]),
        loops=_bulk_loops(instructions, labels),
        pipes=SASS_PIPES,
        access=_sass_access,
    )


def read_amd(assembly: str) -> MachineCode:
    """From the assembly text that Triton keeps, whose comments say which loop a block belongs to."""
    loops: dict[str, list[str]] = {}
    loop = ""
    for line in assembly.splitlines():
        text, _, comment = line.partition(";")
        if block := re.match(r"\.L(BB\w+):", text) or re.match(r" (%bb\.\d+):", comment):
            loop, here = "", block[1]
        if member := re.search(r"in Loop: Header=(BB\w+)|(=>\s*This (?:Inner )?Loop Header)", comment):
            loop = member[1] or here
        if re.match(r"(s|v|global|buffer|flat|ds)_", text.strip()):
            loops.setdefault(loop, []).append(text.strip())
    field = {name: int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for name in _GCN_FIELDS}  # type: ignore[index]
    return MachineCode(
        registers=field["vgpr_count"],
        spills=field["vgpr_spill_count"] + field["sgpr_spill_count"],
        shared=field["group_segment_fixed_size"],
        loops=[body for name, body in loops.items() if name and any(map(GCN_GENERATOR.match, body))],
        pipes=GCN_PIPES,
        access=_gcn_access,
    )


_GCN_FIELDS = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "group_segment_fixed_size")


def _bulk_loops(instructions: list[str], labels: dict[str, int]) -> list[list[str]]:
    """The innermost loops that draw random numbers; a loop is what a branch back encloses."""
    spans = set()
    for i, text in enumerate(instructions):
        target = re.match(r"BRA.*`\((\.L\w+)\)", text)
        if target and labels.get(target[1], i + 1) <= i:
            first = labels[target[1]]
            if any(map(SASS_GENERATOR.match, instructions[first : i + 1])):
                spans.add((first, i))
    innermost = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [instructions[first : last + 1] for first, last in sorted(innermost)]


def _sass_access(text: str) -> tuple[str, int] | None:
    found = re.match(r"(LDG|STG)((?:\.\w+)*)", text)
    if not found:
        return None
    width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", found[2])
    bits = int(width[1].lstrip("US")) if width else 32
    return ("load" if found[1] == "LDG" else "store"), bits


def _gcn_access(text: str) -> tuple[str, int] | None:
    found = re.match(r"(?:global|buffer|flat)_(load|store)_(dwordx\d|[a-z]+)", text)
    return (found[1], GCN_BITS[found[2]]) if found else None


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
