"""The step-cost benchmark on a tiny model: what it writes, and that a mode which computes something else stops it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

trl = pytest.importorskip("trl", reason="the benchmark compares with TRL: pip install -e '.[bench]'")


@pytest.fixture
def step_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import step_cost

    return step_cost


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of nine reviews of unequal length, in SST-2's format and in AG News's."""
    folder = tmp_path_factory.mktemp("data")
    texts = ["good " + "very " * n for n in range(9)]
    (folder / "sst2").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{text}\t{n % 2}\n" for n, text in enumerate(texts)]
        (folder / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    (folder / "agnews").mkdir()
    for split in ("train", "test"):
        rows = [f'"{n % 4 + 1}","A title","{text}"\n' for n, text in enumerate(texts * 2)]
        (folder / "agnews" / f"{split}.csv").write_text("".join(rows))
    return folder


def arguments(tiny_folder: Path, data: Path, out: Path, *more: str) -> list[str]:
    own = ["--model", str(tiny_folder), "--data", str(data), "--rows", "4", "--json", str(out)]
    return [*own, "--datasets", "sst2,agnews", "--steps", "1", *more]


@pytest.mark.slow
def test_a_mode_has_a_row_a_data_set_and_a_mean(
    step_cost: ModuleType, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cost.json"
    modes = {"trl", "hf", "sft", "anit_naive", "anit", "pgd5"}
    step_cost.main(arguments(tiny_folder, data, out, "--modes", ",".join(modes)))
    written = json.loads(out.read_text())
    for dataset in ("sst2", "agnews", "all"):
        assert modes <= {row["mode"] for row in written["rows"] if row["dataset"] == dataset}
    rows = {(row["dataset"], row["mode"]): row for row in written["rows"]}
    for row in rows.values():
        for name in ("ratio_to_trl", "ratio_to_sft", "cpu_seconds", "wall_seconds", "peak_mb", "tokens_per_second"):
            assert row[name] > 0, f"{row['dataset']} {row['mode']} {name}"
    assert rows["sst2", "trl"]["ratio_to_trl"] == rows["agnews", "sft"]["ratio_to_sft"] == 1.0
    mean = math.sqrt(rows["sst2", "pgd5"]["ratio_to_sft"] * rows["agnews", "pgd5"]["ratio_to_sft"])
    assert rows["all", "pgd5"]["ratio_to_sft"] == pytest.approx(mean)
    assert {check["mode"] for check in written["gate"]} >= {"trl", "sft", "anit"}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("broken", ["sft", "anit"])
def test_a_mode_with_other_gradients_stops_the_benchmark(
    step_cost: ModuleType, tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], broken: str,
) -> None:  # fmt: skip
    other = {"sft": {"name": "neftune"}, "anit": {"name": "anit", "lambda": 0.99}}[broken]
    modes = [replace(m, method=other) if m.name == broken else m for m in step_cost.MODES]
    monkeypatch.setattr(step_cost, "MODES", modes)
    out = tmp_path / "cost.json"
    with pytest.raises(SystemExit, match=f"the gate is red: {broken};"):
        step_cost.main(arguments(tiny_folder, data, out, "--modes", "hf,sft,anit_naive,anit"))
    assert "ratio" not in capsys.readouterr().out and not out.exists()


def test_data_sets_are_added_to_a_file(step_cost: ModuleType, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    own = arguments(tiny_folder, data, out, "--modes", "hf,sft")
    step_cost.main([*own, "--datasets", "sst2"])
    step_cost.main([*own, "--datasets", "agnews", "--add"])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["dataset"], row["mode"]) for row in rows] == [
        (dataset, mode) for dataset in ("sst2", "agnews", "all") for mode in ("hf", "sft")
    ]
    assert rows[0]["ratio_to_trl"] is None


def test_an_unknown_mode_is_one_sentence(
    step_cost: ModuleType, tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        step_cost.main(arguments(tiny_folder, data, tmp_path / "x.json", "--modes", "sft,adam"))
    assert end.value.code == 2 and "--modes: adam; there are trl," in capsys.readouterr().err
