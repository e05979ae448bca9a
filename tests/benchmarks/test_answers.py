"""The answers benchmark on a tiny model: what it writes, and that answers which differ stop it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import answers

    return answers


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Reviews of unequal length in SST-2's format."""
    (tmp_path / "sst2").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"good {'very ' * n}\t{n % 2}\n" for n in range(9)]
        (tmp_path / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    own = ["--model", str(tiny_folder), "--data", str(tmp_path), "--json", str(tmp_path / "answers.json")]
    return [*own, "--datasets", "sst2", "--rounds", "1", "--adapter-steps", "1"]


def test_a_row_a_workload_and_those_of_an_earlier_call(answers: ModuleType, arguments: list[str], tmp_path: Path):
    answers.main([*arguments, "--untouched"])
    answers.main([*arguments, "--order", "instruction_last", "--add"])
    rows = json.loads((tmp_path / "answers.json").read_text())["rows"]
    assert [(row["model"], row["instructions"], row["order"]) for row in rows] == [
        ("tuned", "concise", "paper"), ("untouched", "concise", "paper"), ("tuned", "concise", "instruction_last"),
    ]  # fmt: skip
    for row in rows:
        assert row["prompts"] == 9 and row["differ"] == row["differ_scored"] == row["differ_float32"] == 0
        assert 100 < row["shared_tokens"] < row["prompt_tokens"] and 0 < row["read_share"] < 1
        for name in ("plain_per_second", "kept_per_second", "ratio", "scored", "answer_tokens"):
            assert row[name] > 0


def test_no_speed_of_wrong_answers(
    answers: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    own = answers.ask

    def forgetful(*given: object, **how: object) -> list:
        replies = own(*given, **how)
        replies[3].tokens = replies[3].tokens[::-1] + [70]
        return replies

    monkeypatch.setattr(answers, "ask", forgetful)
    with pytest.raises(SystemExit, match="1 of 9 answers differ"):
        answers.main(arguments)
    assert not (tmp_path / "answers.json").exists()
