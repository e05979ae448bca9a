"""A small classifier for everything that asks it, and what `anit predict` says of a few texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked import Program

from anit_ds.configfile import validate
from anit_ds.training import train


@pytest.fixture(scope="package")
def run(tiny_folder: Path, review_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "run"
    train(validate({
        "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
        "data": {"dataset": "jsonl", "path": str(review_folder), "instructions": "concise",
                 "instructions_file": str(review_folder / "instructions.yaml")},
        "method": {"name": "sft"}, "lora": {"r": 4}, "eval": {"max_new_tokens": 12},
        "train": {"epochs": 2, "global_batch": 8, "micro_batch": 8, "lr": 1e-2}, "out": str(out),
    }, source="the test"))  # fmt: skip
    return out


@pytest.fixture(scope="package")
def predicted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `anit predict` says of a few texts."""
    folder = tmp_path_factory.mktemp("predicted")
    texts = [f"test {number} " + "very " * (number % 5) + "good" for number in range(20)]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    program = Program(
        "anit", "predict", run, "--input", "in.jsonl", "--output", "out", output=folder / "said", cwd=folder
    )
    assert program.wait() == 0, program.said()
    return [json.loads(line) for line in (folder / "out").read_text().splitlines()]
