"""A comparison of the tiny model to configure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def write(tiny_folder: Path, review_folder: Path, tmp_path: Path):
    """`write(grid={...}, show=[...])` makes a comparison's YAML of the tiny model and returns its path."""

    def write(**changes: Any) -> Path:
        base = {
            "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
            "data": {"instructions_file": str(review_folder / "instructions.yaml")},
            "lora": {"r": 4},
            "train": {"epochs": 2, "global_batch": 8, "micro_batch": 8, "lr": 1e-2},
            "eval": {"max_new_tokens": 4},
        }
        grid = {
            "methods": ["sft", "anit"],
            "instructions": ["concise"],
            "datasets": [{"dataset": "jsonl", "path": str(review_folder)}],
        }
        raw = {
            "title": "A tiny comparison",
            "out": str(tmp_path / "comparison"),
            **changes,
            "base": {**base, **changes.get("base", {})},
            "grid": {**grid, **changes.get("grid", {})},
        }
        file = tmp_path / "compare.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write
