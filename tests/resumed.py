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
    ended = {file: load_file(file) for file in (out / "checkpoints" / last).glob("*.safetensors")}
    best = next(path for name in ("adapter", "model") for path in (out / name).glob("*.safetensors"))
    whole = load_file(best)
    shutil.rmtree(out / "checkpoints" / last)
    (out / "summary.json").unlink()
    train(config)
    again = load_file(best)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert len(ended) == 2  # the weights that training ended with, which dev may not have kept, and the moments
    for file, tensors in ended.items():
        there = load_file(file)
        assert tensors.keys() == there.keys() and all(torch.equal(tensors[name], there[name]) for name in tensors), file
