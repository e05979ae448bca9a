"""Every weight trained on two ranks at every ZeRO stage, with the table that embeddings and head share: a plain loop's
result, for methods that reach the embeddings in different ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from formulas import formulas
from plain_loop import plain_loop
from ranks import run as run_ranks
from safetensors.torch import load_file

from anit_ds.config import Config

METHODS: dict[str, dict[str, object]] = {
    "anit": {},
    "anit-tree": {"method.schedule": "prefix_tree", "method.tokens": "instruction", "prompt.order": "instruction_last"},
    "freelb": {"method": {"name": "freelb", "eps": 1.0, "alpha": 0.4, "steps": 2}},
}


@pytest.mark.slow
def test_every_stage_is_a_plain_loop(make_config: Callable[..., Config]) -> None:
    expected, runs = {}, {}
    for label, settings in METHODS.items():
        shape = {
            "lora": None, "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "train.max_steps": 2,
            "train.micro_batch": 2, "eval.test": False, "data.max_dev": 2, **settings,
        }  # fmt: skip
        expected[label], _ = plain_loop(make_config(f"{label}-reference", **shape), formulas()[label.split("-")[0]])
        for stage in range(4):
            zero = {"zero_optimization": {"stage": stage}}
            runs[label, stage] = make_config(f"{label}-{stage}", **shape, deepspeed=zero)
    run_ranks(2, *runs.values())
    worst = 0.0
    for (label, stage), config in runs.items():
        saved, weights = load_file(Path(config.out) / "model" / "model.safetensors"), expected[label]
        assert saved.keys() == weights.keys()
        off = max((saved[n] - weights[n]).abs().max().item() for n in weights)
        print(f"{label:10} ZeRO {stage}, 2 ranks x 2 micro-batches of 2, 2 steps: dparam {off:.1e}")
        worst = max(worst, off)
    assert worst <= 1e-5
