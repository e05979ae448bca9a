"""`python -m anit_kernels.aot`: compile NRM's kernels for GPUs that are not there, and read the machine code.

Prints, for each kernel, dtype and target: registers, spills, shared memory, widths of the bulk loads and stores,
instructions per element by unit, bytes per element, warps per SM, and the roofline they imply. With --json, the same as
JSON; with --update, in a checkout, into results/kernels/aot_figures.json, which the tests hold later figures against:
the rows of the Triton that is installed, beside those of other versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
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
PASSES = ("reduce", "apply")
KERNELS = ("init", *PASSES, "one_launch")
CUT_ROWS = "D not a multiple of 8"

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

    @property
    def name(self) -> tuple[str, ...]:
        """What tells a row from all others of its version of Triton."""
        return self.name_of(self)

    @staticmethod
    def name_of(row: Row | Case) -> tuple[str, ...]:
        """The same for the case that a row is measured from."""
        return row.target, row.kernel, row.role, row.dtype, str(row.width)


def cases(
    targets: tuple[str, ...] = tuple(TARGETS),
    dtypes: tuple[str, ...] = DTYPES,
    widths: tuple[int, ...] = WIDTHS,
    mains_only: bool = False,
) -> Iterator[Case]:
    """Everything the table holds. Other dtypes and variants change the two passes alone; once each is enough."""
    for target in targets:
        for dtype in dtypes:
            for width in widths if dtype == "bf16" else widths[-1:]:
                for kernel in KERNELS if dtype == "bf16" else PASSES:
                    yield Case(kernel, "main", dtype, target, width)
        if not mains_only and "bf16" in dtypes:
            yield Case("apply", "ball linf", "bf16", target, widths[-1], ball="linf")
            for kernel in PASSES:
                yield Case(kernel, CUT_ROWS, "bf16", target, 641)


def compile_case(case: Case) -> MachineCode:
    """Compile one kernel as `nrm_triton` would launch it."""
    target = TARGETS[case.target]
    warps = _warps(case)
    function = {"init": init_kernel, "reduce": reduce_kernel}.get(case.kernel, apply_kernel)
    constants: dict[str, Any] = tiling(case.width, warps * target.warp_size)._asdict()
    constants |= {"D": case.width, "BALL": case.ball, "FUSED": case.kernel == "one_launch", "EPS_PER_SAMPLE": True}
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
    full = case.width / 8 / tile.ROW
    elements = 8 * tile.UNROLL * full
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


def totals(figures: dict[str, list[Row]]) -> str:
    """Both passes of `nrm_step` on each GPU with each version of Triton, as Markdown."""
    head = (
        "GPU",
        "Triton",
        "dtype",
        "D",
        "reduce + apply",
        "instr/el",
        "spills",
        "bytes/el",
        "bandwidth ps",
        "issue ps",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    steps: dict[tuple[str, ...], dict[str, Row]] = {}
    for version, rows in figures.items():
        for row in rows:
            if row.kernel in PASSES and row.role in ("main", CUT_ROWS):
                steps.setdefault((row.target, row.dtype, str(row.width), version), {})[row.kernel] = row
    for (target, dtype, width, version), step in sorted(steps.items(), key=lambda item: _order(item[0])):
        if set(step) != set(PASSES):
            continue
        both = [step[kernel] for kernel in PASSES]
        instructions = [row.sass_per_element for row in both]
        cells = [
            GPUS[target].name if target in GPUS else target, version, dtype, width,
            " + ".join(f"{count:.1f}" for count in instructions), f"{sum(instructions):.1f}",
            sum(row.spills for row in both), f"{sum(row.bytes_per_element for row in both):.1f}",
            *(_sum([getattr(row, name) for row in both]) for name in ("bandwidth_ps", "issue_ps")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _order(name: tuple[str, ...]) -> tuple[int, int, int, str]:
    target, dtype, width, version = name
    return list(TARGETS).index(target), DTYPES.index(dtype), int(width), version


def _sum(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _picoseconds(sum(known) if known else None)


def _picoseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def recorded() -> dict[str, list[Row]]:
    """The rows of each version of Triton in FIGURES: they belong to the version, whose compiler made them."""
    return {name: [Row(**row) for row in rows] for name, rows in json.loads(FIGURES.read_text()).items()}


def record(rows: list[Row]) -> None:
    """Put rows among those of this Triton, in the order of `cases`; rows that `cases` does not know go."""
    figures = recorded() if FIGURES.exists() else {}
    known = {row.name: row for row in [*figures.get(triton.__version__, []), *rows]}
    names = [Row.name_of(case) for case in cases()]
    figures[triton.__version__] = [known[name] for name in names if name in known]
    content = {version: [asdict(row) for row in figures[version]] for version in sorted(figures)}
    FIGURES.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m anit_kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--update", action="store_true", help=f"write the rows into {FIGURES.name}, among those of this Triton"
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this target (repeatable)")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="only this dtype (repeatable)")
    parser.add_argument("--width", action="append", type=int, help="embeddings of this width (repeatable)")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="only this kernel (repeatable)")
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
    rows = [measure(case) for case in chosen if case.kernel in (arguments.kernel or KERNELS)]
    if arguments.update:
        record(rows)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
        if {row.kernel for row in rows} >= set(PASSES):
            print("\nnrm_step, two launches:\n", totals({triton.__version__: rows}), sep="\n")


if __name__ == "__main__":
    main()
