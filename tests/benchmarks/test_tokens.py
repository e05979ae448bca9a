"""The count of a step's tokens: what it writes, and that a step of the text's scope runs the shared beginning once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_each_scope_is_counted(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import tokens

    (tmp_path / "sst2").mkdir()
    for split, count in (("train", 8), ("dev", 4)):
        lines = [f"film {number}\t{number % 2}" for number in range(count)]
        (tmp_path / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    file = tmp_path / "tokens.json"
    tokens.main(["--data", str(tmp_path), "--model", str(tiny_folder), "--datasets", "sst2", "--batches", "4",
                 "--json", str(file)])  # fmt: skip
    rows = {row["scope"]: row for row in json.loads(file.read_text())["rows"]}
    sft, text = rows["sft"], rows["text"]
    assert all(rows[attacked]["padded"] == 2 * sft["padded"] for attacked in ("prompt", "text", "instruction"))
    # Texts of one length: a step of `sft` runs what they share once, and what is left of a sample four times.
    shared = (sft["padded"] - sft["tree"]) / 3
    behind = sft["padded"] / 4 - shared
    assert text["tree"] == pytest.approx(shared + 2 * 4 * behind, abs=2 * 4 * len(" film ") + 3)
    assert rows["instruction"]["tree"] < text["tree"] < rows["prompt"]["tree"]
