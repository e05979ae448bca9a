"""The machine code of the kernels against committed figures: no figure may get worse unnoticed.

The figures belong to a version of Triton. An intended change is recorded with `python -m anit_kernels.aot --update`,
once with each version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matrix
import pytest

pytest.importorskip("triton")

REPOSITORY = Path(__file__).parents[2]
RECORDED = json.loads((REPOSITORY / "results" / "kernels" / "aot_figures.json").read_text())
VERSIONS = ("3.6.0", "3.7.1", "3.9.0")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
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


def compare(rows: list[dict[str, Any]], triton: str = version("triton")) -> None:
    if triton not in RECORDED:
        pytest.skip(f"no figures of Triton {triton} are recorded")
    recorded = {tuple(row[key] for key in KEYS): row for row in RECORDED[triton]}
    named = {tuple(row[key] for key in KEYS): row for row in rows}
    assert named.keys() & recorded.keys(), "nothing that was compiled has a recorded figure"
    for name, row in named.items():
        if name not in recorded:
            continue
        for figure in SMALLER_IS_BETTER:
            assert row[figure] <= recorded[name][figure], (name, figure)
        for figure in LARGER_IS_BETTER:
            assert row[figure] >= recorded[name][figure], (name, figure)


def test_a_step_on_every_chip_with_the_triton_that_is_here() -> None:
    """One launch holds both passes: one compilation a chip says what a step takes, on versions without figures too."""
    targets = [option for target in TARGETS for option in ("--target", target)]
    rows = compiled(*targets, "--dtype", "bf16", "--main", "--width", "4096", "--kernel", "one_launch")
    assert {row["target"] for row in rows} == set(TARGETS)
    for row in rows:
        assert (row["load_bits"], row["store_bits"], row["spills"]) == (128, 128, 0)
        assert row["sass_per_element"] <= 22 or row["target"] != "sm_90"
    compare(rows)


@pytest.mark.slow
@pytest.mark.parametrize("target", matrix.rows(TARGETS, quick=["sm_90"]))
def test_every_kernel_is_no_worse_than_recorded(target: str) -> None:
    compare(compiled("--target", target))


def rows_of(triton: str, **wanted: object) -> list[dict[str, Any]]:
    rows = [row for row in RECORDED[triton] if all(row[key] == value for key, value in wanted.items())]
    assert rows, wanted
    return rows


def instructions(triton: str, **wanted: object) -> float:
    """Of both passes of a step."""
    rows = {row["kernel"]: row for row in rows_of(triton, **wanted)}
    return float(rows["reduce"]["sass_per_element"] + rows["apply"]["sass_per_element"])


def test_the_oldest_triton_allowed_is_recorded() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["triton"] == [f"triton>={VERSIONS[0].rpartition('.')[0]}"]


def test_every_version_records_the_same_cases() -> None:
    oldest, *later = [[tuple(row[key] for key in KEYS) for row in RECORDED[triton]] for triton in VERSIONS]
    assert all(names == oldest for names in later)
    assert len(oldest) >= 6


@pytest.mark.parametrize("triton", VERSIONS)
def test_no_model_s_kernel_spills(triton: str) -> None:
    """Eight registers do, of one case that is no model's: 3.7 on gfx942, at a width that 8 does not divide."""
    spilling = [(row["target"], row["width"], row["spills"]) for row in RECORDED[triton] if row["spills"]]
    assert spilling == ([("gfx942", 641, 8)] if triton == "3.7.1" else [])


@pytest.mark.parametrize("triton", VERSIONS)
def test_bulk_accesses_are_128_bits_wide(triton: str) -> None:
    for row in rows_of(triton, role="main"):
        assert row["load_bits"] == 128
        assert row["store_bits"] == (0 if row["kernel"] == "reduce" else 128)


@pytest.mark.parametrize("triton", VERSIONS)
def test_a_step_reads_g_twice_and_e_once_and_writes_once(triton: str) -> None:
    accesses = {"init": 2, "reduce": 1, "apply": 3, "one_launch": 4}
    for row in rows_of(triton, role="main"):
        assert row["bytes_per_element"] == accesses[row["kernel"]] * ITEM_BYTES[row["dtype"]]


@pytest.mark.parametrize("triton", VERSIONS)
def test_a_step_takes_22_instructions_an_element(triton: str) -> None:
    assert instructions(triton, role="main", target="sm_90", dtype="bf16", width=4096) <= 22.2
    assert instructions(triton, role="D not a multiple of 8", target="sm_90") <= 40


@pytest.mark.parametrize("triton", VERSIONS)
def test_bandwidth_binds_a_step_on_an_h100(triton: str) -> None:
    for width in (576, 4096):
        rows = rows_of(triton, role="main", target="sm_90", dtype="bf16", width=width)
        both = [row for row in rows if row["kernel"] in ("reduce", "apply")]
        assert sum(row["bandwidth_ps"] for row in both) > sum(row["issue_ps"] for row in both)


@pytest.mark.parametrize(
    ("figure", "change"),
    [("sass_per_element", 0.01), ("registers", 1), ("spills", 4), ("bytes_per_element", 0.5), ("load_bits", -64)],
)
def test_a_worse_figure_is_noticed(figure: str, change: float) -> None:
    row = rows_of(VERSIONS[-1], role="main", target="sm_90", dtype="bf16")[0]
    with pytest.raises(AssertionError, match=figure):
        compare([row | {figure: row[figure] + change}], VERSIONS[-1])


def test_the_readme_holds_the_recorded_figures() -> None:
    aot = pytest.importorskip("anit_kernels.aot")
    readme = (REPOSITORY / "kernels" / "README.md").read_text(encoding="utf-8")
    assert aot.totals(aot.recorded()) in readme
