"""The machine code of the kernels against committed figures: no figure may get worse unnoticed.

An intended change is recorded with `python -m anit_kernels.aot --update`, which rewrites them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

REPOSITORY = Path(__file__).parents[2]
FIGURES = json.loads((REPOSITORY / "results" / "kernels" / "aot_figures.json").read_text())
KEYS = ("kernel", "role", "dtype", "target", "width")
SMALLER_IS_BETTER = ("registers", "spills", "shared", "sass_per_element", "bytes_per_element")
LARGER_IS_BETTER = ("load_bits", "store_bits", "warps")
ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def compiled(*options: str) -> list[dict[str, Any]]:
    """Rows from the command itself, in a process where no kernel is interpreted."""
    run = subprocess.run(
        [sys.executable, "-m", "anit_kernels.aot", "--json", *options], capture_output=True, text=True, check=True
    )
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


def compare(rows: list[dict[str, Any]]) -> None:
    if version("triton") != FIGURES["triton"]:
        pytest.skip(f"the figures belong to Triton {FIGURES['triton']}")
    recorded = {tuple(row[key] for key in KEYS): row for row in FIGURES["rows"]}
    assert rows
    for row in rows:
        name = tuple(row[key] for key in KEYS)
        for figure in SMALLER_IS_BETTER:
            assert row[figure] <= recorded[name][figure], (name, figure)
        for figure in LARGER_IS_BETTER:
            assert row[figure] >= recorded[name][figure], (name, figure)


def test_h100_bfloat16_is_no_worse_than_recorded() -> None:
    compare(compiled("--target", "sm_90", "--dtype", "bf16", "--main", "--width", "4096"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_is_no_worse_than_recorded(target: str) -> None:
    compare(compiled("--target", target))


def rows_of(**wanted: str) -> list[dict[str, Any]]:
    rows = [row for row in FIGURES["rows"] if all(row[key] == value for key, value in wanted.items())]
    assert rows
    return rows


def test_the_record_is_complete() -> None:
    assert {row["target"] for row in FIGURES["rows"]} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        for dtype in ITEM_BYTES:
            kernels = {row["kernel"] for row in rows_of(target=target, dtype=dtype, role="main")}
            assert kernels == {"init", "reduce", "apply", "one_launch"}


def test_nothing_spills() -> None:
    assert {(row["kernel"], row["target"], row["spills"]) for row in FIGURES["rows"] if row["spills"]} == set()


def test_bulk_accesses_are_128_bits_wide() -> None:
    for row in rows_of(role="main"):
        assert row["load_bits"] == 128
        assert row["store_bits"] == (0 if row["kernel"] == "reduce" else 128)


def test_a_step_reads_g_twice_and_e_once_and_writes_once() -> None:
    accesses = {"init": 2, "reduce": 1, "apply": 3, "one_launch": 4}
    for row in rows_of(role="main"):
        assert row["bytes_per_element"] == accesses[row["kernel"]] * ITEM_BYTES[row["dtype"]]


@pytest.mark.parametrize("width", [576, 4096])
def test_a_step_takes_at_most_28_instructions_an_element(width: int) -> None:
    rows = {row["kernel"]: row for row in rows_of(role="main", target="sm_90", dtype="bf16") if row["width"] == width}
    assert rows["reduce"]["sass_per_element"] + rows["apply"]["sass_per_element"] <= 28
    assert rows["one_launch"]["sass_per_element"] <= 28


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_bandwidth_binds_a_step(target: str) -> None:
    for width in (576, 4096):
        rows = {
            row["kernel"]: row for row in rows_of(role="main", target=target, dtype="bf16") if row["width"] == width
        }
        both = (rows["reduce"], rows["apply"])
        assert sum(row["bandwidth_ps"] for row in both) > sum(row["issue_ps"] for row in both)


@pytest.mark.parametrize(
    ("figure", "change"),
    [("sass_per_element", 0.01), ("registers", 1), ("spills", 4), ("bytes_per_element", 0.5), ("load_bits", -64)],
)
def test_a_worse_figure_is_noticed(figure: str, change: float) -> None:
    row = rows_of(role="main", target="sm_90", dtype="bf16")[0]
    with pytest.raises(AssertionError, match=figure):
        compare([row | {figure: row[figure] + change}])


def test_the_readme_holds_the_recorded_table() -> None:
    aot = pytest.importorskip("anit_kernels.aot")
    rows = [aot.Row(**row) for row in FIGURES["rows"]]
    readme = (REPOSITORY / "kernels" / "README.md").read_text(encoding="utf-8")
    assert aot.table(rows) in readme
    assert aot.totals(rows) in readme
