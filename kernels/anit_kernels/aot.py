"""`python -m anit_kernels.aot`: compile NRM's kernels for GPUs that are not there, and read the machine code.

Prints, for each kernel, dtype and target: registers, spills, shared memory, widths of the bulk loads and stores,
instructions per element by unit, bytes per element, warps per SM, and the roofline they imply. With --json, the same as
JSON; with --update, in a checkout, into results/kernels/aot_figures.json, which the tests hold later figures against.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .machine_code import MachineCode, read_amd, read_nvidia
from .nrm_kernels import apply_kernel, init_kernel, reduce_kernel
from .nrm_triton import CHUNK_WARPS, ONE_LAUNCH_WARPS, tiling
from .roofline import GPUS, bound, resident_warps

FIGURES = Path(__file__).parents[2] / "results" / "kernels" / "aot_figures.json"  # in a checkout
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = ("bf16", "fp16", "fp32")
WIDTHS = (576, 4096)  # SmolLM2-135M; 7B and 8B models.

# Kernel arguments by their type; {0} is the embeddings' dtype.
ARGUMENTS = {
    **dict.fromkeys(("x", "grad", "embeddings"), "*{0}"),
    **dict.fromkeys(("norms", "clamped", "partials", "eps", "beta"), "*fp32"),
    **dict.fromkeys(("mask", "attended"), "*u8"),
    **dict.fromkeys(("length", "chunk"), "i32"),
    **dict.fromkeys(("step", "key_low", "key_high"), "u32"),
    "flags": "*i8",
    "sample_ids": "*i64",
    "cu_seqlens": "*i32",
    "alpha": "fp32",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One compilation. `role` is `main` for what the trainer launches for padded rows, else what differs from that."""

    kernel: str
    role: str
    dtype: str
    target: str
    width: int
    ball: str = "frobenius"
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; instructions, bytes and times are an element of [B, T, D]."""

    kernel: str
    role: str
    dtype: str
    target: str
    width: int
    registers: int
    spills: int
    shared: int
    warps: int
    load_bits: int
    store_bits: int
    sass_per_element: float
    by_pipe: dict[str, float]
    bytes_per_element: float
    bandwidth_ps: float | None
    issue_ps: float | None
    binds: str


def cases(
    targets: tuple[str, ...] = tuple(TARGETS),
    dtypes: tuple[str, ...] = DTYPES,
    widths: tuple[int, ...] = WIDTHS,
    mains_only: bool = False,
) -> Iterator[Case]:
    """Everything the table holds; variants are compiled in bfloat16 at the last width."""
    for target in targets:
        for dtype in dtypes:
            # The dtype changes what is read and converted, the width next to nothing: once each is enough.
            for width in widths if dtype == "bf16" else widths[-1:]:
                for kernel in ("init", "reduce", "apply", "one_launch"):
                    yield Case(kernel, "main", dtype, target, width)
        if not mains_only and "bf16" in dtypes:
            width = widths[-1]
            yield Case("apply", "ball none", "bf16", target, width, ball="none")
            yield Case("apply", "ball linf", "bf16", target, width, ball="linf")
            yield Case("reduce", "packed rows", "bf16", target, width, packed=True)
            yield Case("apply", "packed rows", "bf16", target, width, packed=True)
            yield Case("reduce", "D not a multiple of 8", "bf16", target, 641)
            yield Case("apply", "D not a multiple of 8", "bf16", target, 641)


def compile_case(case: Case) -> MachineCode:
    """Compile one kernel as `nrm_triton` would launch it."""
    target = TARGETS[case.target]
    warps = _warps(case)
    function = {"init": init_kernel, "reduce": reduce_kernel}.get(case.kernel, apply_kernel)
    constants: dict[str, Any] = tiling(case.width, warps * target.warp_size)._asdict()
    constants |= {"D": case.width, "BALL": case.ball, "FUSED": case.kernel == "one_launch", "EPS_PER_SAMPLE": True}
    if not case.packed:
        constants["cu_seqlens"] = None
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else ARGUMENTS[n].format(case.dtype) for n in names}
    source = ASTSource(
        function,
        signature,
        {(names.index(n),): value for n, value in constants.items() if n in names},
        # Tensors start at 16-byte boundaries: PyTorch's allocator, and `nrm_triton` for views.
        {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")},
    )
    compiled = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
    return read_amd(compiled.asm["amdgcn"]) if target.backend == "hip" else read_nvidia(compiled.asm["cubin"])


def measure(case: Case) -> Row:
    """Compile one kernel and read its figures."""
    code = compile_case(case)
    warps = _warps(case)
    tile = tiling(case.width, warps * TARGETS[case.target].warp_size)
    loads, stores = code.accesses("load"), code.accesses("store")
    # One turn of a loop is UNROLL tiles, one cell per thread; the last tile of a row may reach beyond D.
    row = case.width // tile.CHANNELS
    full = row / (-(-row // tile.CELLS) * tile.CELLS)
    elements = tile.CHANNELS * tile.UNROLL * full
    pipes = {name: count / elements for name, count in sorted(code.by_pipe().items())}
    traffic = sum(loads + stores) / 8 / elements * full
    limit = bound(GPUS[case.target], traffic, pipes) if case.target in GPUS else None
    return Row(
        kernel=case.kernel,
        role=case.role,
        dtype=case.dtype,
        target=case.target,
        width=case.width,
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        warps=resident_warps(case.target, code.registers, warps),
        load_bits=min(loads, default=0),
        store_bits=min(stores, default=0),
        sass_per_element=round(code.instructions() / elements, 2),
        by_pipe={name: round(count, 2) for name, count in pipes.items()},
        bytes_per_element=round(traffic, 2),
        bandwidth_ps=round(limit.bandwidth_ps, 3) if limit else None,
        issue_ps=round(limit.issue_ps, 3) if limit else None,
        binds=limit.binds if limit else "",
    )


def step_total(rows: list[Row], target: str, dtype: str, width: int) -> dict[str, float]:
    """Both passes of `nrm_step` in two launches: instructions, bytes and the two bounds, an element."""
    passes = [
        row
        for row in rows
        if (row.role, row.target, row.dtype, row.width) == ("main", target, dtype, width)
        and row.kernel in ("reduce", "apply")
    ]
    fields = ("sass_per_element", "bytes_per_element", "bandwidth_ps", "issue_ps")
    return {name: round(sum(getattr(row, name) or 0.0 for row in passes), 2) for name in fields}


def _warps(case: Case) -> int:
    return ONE_LAUNCH_WARPS if case.kernel == "one_launch" else CHUNK_WARPS


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = (
        "target", "kernel", "role", "dtype", "D", "regs", "spills", "shared", "warps/SM", "load", "store",
        "instr/el", "fma", "logic", "mul", "conv", "mem", "bytes/el", "bandwidth ps", "issue ps", "binds",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        pipes = [f"{row.by_pipe.get(name, 0):.1f}" for name in ("fma", "logic", "multiply", "conversion", "memory")]
        cells = [
            row.target, row.kernel, row.role, row.dtype, row.width, row.registers, row.spills, row.shared, row.warps,
            row.load_bits or "", row.store_bits or "", f"{row.sass_per_element:.1f}", *pipes,
            f"{row.bytes_per_element:.1f}", _picoseconds(row.bandwidth_ps), _picoseconds(row.issue_ps), row.binds,
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def totals(rows: list[Row]) -> str:
    """`nrm_step` as a whole on each GPU, as Markdown."""
    lines = ["| GPU | dtype | D | instr/el | bytes/el | bandwidth ps | issue ps | binds |", "|" + "---|" * 8]
    keys = dict.fromkeys((row.target, row.dtype, row.width) for row in rows if row.role == "main")
    for target, dtype, width in keys:
        if target in GPUS:
            total = step_total(rows, target, dtype, width)
            binds = "bandwidth" if total["bandwidth_ps"] >= total["issue_ps"] else "issue"
            numbers = " | ".join(f"{value:.2f}" for value in total.values())
            lines.append(f"| {GPUS[target].name} | {dtype} | {width} | {numbers} | {binds} |")
    return "\n".join(lines)


def _picoseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def as_figures(rows: list[Row]) -> Mapping[str, Any]:
    """What aot_figures.json holds: figures belong to a version of Triton, whose compiler made them."""
    return {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m anit_kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--update", action="store_true", help=f"write all rows into {FIGURES.name}")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target (repeatable)")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="only this dtype (repeatable)")
    parser.add_argument("--width", action="append", type=int, help="embeddings of this width (repeatable)")
    parser.add_argument("--main", action="store_true", help="only what the trainer launches for padded rows")
    arguments = parser.parse_args()
    if arguments.update and not FIGURES.parent.is_dir():
        parser.error(f"--update belongs to a checkout of the repository: there is no folder {FIGURES.parent}")
    if triton.knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET=1 is set: unset it, interpreted kernels cannot be compiled")
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    chosen = cases(
        tuple(arguments.target or TARGETS),
        tuple(arguments.dtype or DTYPES),
        tuple(arguments.width or WIDTHS),
        arguments.main,
    )
    rows = [measure(case) for case in chosen]
    if arguments.update:
        FIGURES.write_text(json.dumps(as_figures(rows), indent=1) + "\n")
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows), "\nnrm_step, two launches (both passes):\n", totals(rows), sep="\n")


if __name__ == "__main__":
    main()
