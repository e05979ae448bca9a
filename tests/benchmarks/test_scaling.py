"""The growth benchmark on a tiny model, and its fit on costs whose exponents are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import scaling

    return scaling


def test_slope_is_the_exponent(scaling: ModuleType) -> None:
    sizes = [64, 128, 256, 512]
    assert scaling.slope(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert scaling.slope(sizes, [7.0] * 4) == pytest.approx(0.0, abs=1e-12)


def test_both_directions_are_measured(scaling: ModuleType, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    sizes = ["--lengths", "32", "64", "--micro-batches", "1", "2", "--steps", "1"]
    scaling.main(["--model", str(tiny_folder), *sizes, "--json", str(out)])
    written = json.loads(out.read_text())
    modes = {"sft", "anit", "anit_clean"}
    assert {(r["mode"], r["micro_batch"], r["length"]) for r in written["rows"]} == {
        (mode, *size) for mode in modes for size in ((2, 32), (2, 64), (1, 128), (2, 128))
    }
    assert all(row["cpu_seconds"] > 0 and row["peak_mb"] >= 0 for row in written["rows"])
    assert {(fit["mode"], fit["along"]) for fit in written["slopes"]} == {
        (mode, along) for mode in modes for along in ("length", "micro_batch")
    }
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.matrix
def test_ranks_are_real_processes(scaling: ModuleType, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranks.json"
    scaling.main(["--model", str(tiny_folder), "--ranks", "2", "--steps", "1", "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mode"], row["ranks"]) for row in rows] == [(mode, 2) for mode in ("sft", "anit", "anit_clean")]
    assert all(row["wall_seconds"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert all(row["efficiency"] is None for row in rows), "one rank was not measured"


def test_efficiency_is_one_rank_s_time_over_theirs(scaling: ModuleType) -> None:
    size = {"micro_batch": 2, "length": 100}
    taken = {("sft", 1): 2.0, ("sft", 2): 2.5, ("anit", 1): 4.0, ("anit", 2): 8.0}
    rows = [{"mode": mode, "ranks": ranks, "wall_seconds": s, **size} for (mode, ranks), s in taken.items()]
    found = {(row["mode"], row["ranks"]): row for row in scaling.with_efficiency(rows)}
    assert {key: row["efficiency"] for key, row in found.items()} == {
        ("sft", 1): 1.0, ("sft", 2): 0.8, ("anit", 1): 1.0, ("anit", 2): 0.5
    }  # fmt: skip
    assert found["sft", 2]["tokens_per_second"] == 160.0
