"""A run that lost its last checkpoint, started again: what several tests demand of a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.training import train


def assert_a_resume_is_exact(config: Config, last: str) -> None:
    """A finished run goes on from the checkpoint before `last`, and ends in the same bits."""
    out = Path(config.out)
    best = next(path for name in ("adapter", "model") for path in (out / name).glob("*.safetensors"))
    whole = load_file(best)
    shutil.rmtree(out / "checkpoints" / last)
    (out / "summary.json").unlink()
    train(config)
    again = load_file(best)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
