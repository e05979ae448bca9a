"""Which checkpoint is the newest, and which ones stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from anit_ds.training.checkpoint import latest_good, prune


@pytest.mark.parametrize("keep", [1, 2])
def test_steps_are_numbers_and_strangers_are_left_alone(tmp_path: Path, keep: int) -> None:
    """999800 steps come before 1000000, which as text they do not."""
    for name in ("step-999600", "step-999800", "step-1000000", "step-final", "step-000001.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text('{"sha256": {}}')
    newest = latest_good(tmp_path)
    assert newest is not None and newest.name == "step-1000000"
    prune(tmp_path, newest, keep=keep)
    kept = ["step-1000000", "step-999800"][:keep]
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "step-final", "step-000001.bak"}


def test_what_was_just_written_stays_where_a_damaged_one_is_newer(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"step-{step:06d}").mkdir()
    prune(tmp_path, tmp_path / "step-000004", keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]
