"""Cut texts are counted for each split and once, and noise of epochs that are over does not pile up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.commands.describe import describe_data, describe_summary
from anit_ds.config import Config
from anit_ds.data.rundata import RunData
from anit_ds.data.survey import survey
from anit_ds.training import train


@pytest.fixture
def long_texts(review_folder: Path, tmp_path: Path) -> Path:
    """The reviews with two texts of train, one of dev and three of test that are too long for 300 bytes."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "instructions.yaml").write_bytes((review_folder / "instructions.yaml").read_bytes())
    for split, count in (("train", 2), ("dev", 1), ("test", 3)):
        rows = [json.loads(line) for line in (review_folder / f"{split}.jsonl").read_text().splitlines()]
        for row in rows[:count]:
            row["text"] += " indeed" * 60
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_counts_and_epochs(make_config: Callable[..., Config], long_texts: Path) -> None:
    config = make_config(
        **{
            "data.path": str(long_texts), "data.max_length": 300, "noise.resample": "epoch", "eval.every": 1.0,
            "eval.noises": ["shuffle"], "train.epochs": 4, "train.checkpoint_every": 5,
        }
    )  # fmt: skip
    summary = train(config)
    assert summary is not None
    assert summary["truncated"] == {"train": 2, "dev": 1, "test": 3} and summary["left_out"] == 0
    out = Path(config.out)
    assert "texts cut to fit data.max_length: 2 of train, 1 of dev, 3 of test\n" in describe_summary(summary, out)
    # When the last of four epochs began, the newest checkpoint was that of step 5, in the second one.
    assert sorted(path.name for path in (out / "data").glob("epoch-*")) == ["epoch-001", "epoch-003"]
    data = RunData.load(config, out / "data")
    told = describe_data(data, out / "data", [survey(of, config) for of in data.sets])
    for of, count in (("21", 2), ("6", 1), ("6", 3)):
        assert f"; {count} of {of} longer than data.max_length" in told
