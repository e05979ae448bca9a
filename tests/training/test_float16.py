"""float16 at ZeRO 1 to 3, which no CPU is allowed: PyTorch computes it here when DeepSpeed and we let it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from matrix import rows
from nrm import FULL_NRM
from resumed import assert_a_resume_is_exact

from anit_ds.config import Config
from anit_ds.training import loop, train

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "anit": {**FULL_NRM},
    "anit, pipelined": {**FULL_NRM, "schedule": "pipelined"},
    "anit, tree": {**FULL_NRM, "schedule": "prefix_tree"},
    "freelb": {"name": "freelb"},
}


@pytest.fixture(autouse=True)
def float16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPU_Accelerator, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(loop, "resolve_dtype", lambda name, device: getattr(torch, name))


@pytest.mark.parametrize(
    ("stage", "method"),
    rows(
        [(1, "anit"), (2, "sft"), (3, "anit, tree"), (3, "freelb"), (3, "anit, pipelined")],
        quick=[(1, "anit")],
    ),
)
def test_losses_are_finite_and_a_resume_is_exact(make_config: Callable[..., Config], stage: int, method: str) -> None:
    config = make_config(
        **{
            "model.dtype": "float16",
            "deepspeed": {"zero_optimization": {"stage": stage}, "fp16": {"initial_scale_power": 8}},
            "method": METHODS[method],
            "train.micro_batch": 4,
            "eval.test": False,
        }
    )
    summary = train(config)
    assert summary is not None and summary["nonfinite_steps"] == summary["scaler_skips"] == 0
    out = Path(config.out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 6 and all(math.isfinite(line["loss/clean"]) for line in lines if "loss/clean" in line)
    assert_a_resume_is_exact(config, last="step-000006")


def test_a_resume_goes_on_with_the_scale_that_was_found(make_config: Callable[..., Config]) -> None:
    """From a scale at which gradients overflow: a resume that began with it anew would throw its first steps away."""
    config = make_config(
        **{
            "model.dtype": "float16",
            "deepspeed": {"zero_optimization": {"stage": 1}, "fp16": {"initial_scale_power": 22, "hysteresis": 1}},
            "method": {"name": "anit", "preset": "ours"},
            "train.epochs": 4,
            "eval.test": False,
        }
    )
    summary = train(config)
    assert summary is not None and 0 < summary["scaler_skips"] < 12
    assert_a_resume_is_exact(config, last=f"step-{summary['steps']:06d}")
