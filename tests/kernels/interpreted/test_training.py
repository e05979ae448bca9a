"""Training with the Triton kernels is the training with the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.config import Config
from anit_ds.training import train
from anit_kernels import nrm_triton

COMPARED = ("loss/clean", "loss/adversarial", "nrm/delta0_norm", "nrm/delta1_norm", "nrm/cosine", "nrm/clipped_share")


def run(make_config: Callable[..., Config], name: str) -> list[dict[str, float]]:
    """The lines of eight steps, of one sample each: the interpreter is slow."""
    small = {
        "train.max_steps": 8, "train.global_batch": 1, "train.micro_batch": 1, "train.checkpoint_every": 100,
        "eval.test": False,
    }  # fmt: skip
    config = make_config(name, **small)
    train(config)
    lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss/adversarial" in line]


def test_eight_steps_give_the_same_losses(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    step = nrm_triton.nrm_step
    monkeypatch.setattr(nrm_triton, "nrm_step", lambda *arguments: launched.append(1) or step(*arguments))
    runs = {}
    for implementation in ("triton", "reference"):
        monkeypatch.setenv("ANIT_KERNEL", implementation)
        runs[implementation] = run(make_config, implementation)
    assert len(launched) >= 8
    assert len(runs["triton"]) == len(runs["reference"]) == 8
    for ours, theirs in zip(runs["triton"], runs["reference"], strict=True):
        for name in COMPARED:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (ours["step"], name)
