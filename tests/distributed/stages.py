"""Two steps on two ranks at ZeRO stages, against a hand-written PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from formulas import formulas
from plain_loop import plain_loop
from ranks import run as run_ranks
from safetensors.torch import load_file

from anit_ds.config import Config

_TWO_STEPS = {
    "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "train.max_steps": 2,
    "train.micro_batch": 2, "eval.test": False, "data.max_dev": 2,
}  # fmt: skip


def assert_every_stage_is_a_plain_loop(
    make_config: Callable[..., Config], cases: Mapping[str, Mapping[str, Any]], weights_file: str
) -> None:
    """cases: a label, which begins with the name of the formula, and what it changes in the configuration. They run at
    ZeRO 0 and 3, the two ways in which gradients come together, and "anit" at 1 and 2 as well.
    weights_file: where a run keeps its best weights."""
    expected, runs = {}, {}
    for label, changes in cases.items():
        shape = {**_TWO_STEPS, **changes}
        formula = formulas()[label.partition("-")[0]]
        expected[label], _ = plain_loop(make_config(f"{label}-reference", **shape), formula)
        for stage in range(4) if label == "anit" else (0, 3):
            zero = {"zero_optimization": {"stage": stage}}
            runs[label, stage] = make_config(f"{label}-{stage}", **shape, deepspeed=zero)
    run_ranks(2, *runs.values())
    for (label, stage), config in runs.items():
        saved, weights = load_file(Path(config.out) / weights_file), expected[label]
        assert saved.keys() == weights.keys()
        off = max((saved[n] - weights[n]).abs().max().item() for n in weights)
        print(f"{label:10} ZeRO {stage}, 2 ranks x 2 micro-batches of 2, 2 steps: dparam {off:.1e}")
        assert off <= 1e-5
