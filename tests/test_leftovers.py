"""What a killed run left is swept when the run begins again, and nothing else is."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from anit_ds.config import Config
from anit_ds.runfolder import RunFolder

SWEPT = [
    ".summary.json.123", ".adapter.writing/adapter_model.safetensors", "data/.train.jsonl.123",
    "data/.parts-0123456789abcdef/part-000000.jsonl", "data/epoch-002/.manifest.json.9",
    "checkpoints/.step-000004.writing/weights.safetensors", "checkpoints/.step-000002.old/state.json",
    "eval/.dev.json.123",
]  # fmt: skip
KEPT = [
    ".notes.txt.1", ".git/config", ".summary.json", "mine/.adapter.writing/x", "data/train.jsonl", "data/manifest.json",
    "data/epoch-003/.parts-0123456789abcdef/part-000000.jsonl", "checkpoints/step-000002/state.json",
    "eval/.test.json.123", "eval/dev.json",
]  # fmt: skip


def test_only_our_own_half_written_files_go(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    """An unfinished noisy set stays, for the next start goes on with it, and what a reader may be writing in eval/."""
    config = make_config()
    run = RunFolder(config.out)
    run.begin(config)
    for name in [*SWEPT, *KEPT]:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("x")
    (run.path / "checkpoints/.step-000006.old").mkdir()
    with (run.path / "eval/.test.json.123").open("rb") as written:  # as `replacing` holds what it writes
        fcntl.flock(written, fcntl.LOCK_SH)
        run.begin(config)
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {*KEPT, "config.yaml"}
    assert not list(run.path.glob("checkpoints/.*")) and not list(run.path.glob("data/.*"))
    assert (run.path / "checkpoints/step-000006").is_dir(), "a folder between its two renames has its name again"
