"""Every ZeRO stage, number of ranks, accumulation and checkpointing gives one-process PyTorch's result.

The reference is tests/plain_loop.py with NRM's formula. SGD shows wrong gradient scales, which Adam hides; AdamW at
eps 1e-6 shows wrong moments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from formulas import anit
from matrix import rows
from plain_loop import plain_loop
from ranks import run as run_ranks
from safetensors.torch import load_file

from anit_ds.config import Config

REPOSITORY = Path(__file__).parents[2]
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
OPTIMIZERS = {
    "sgd": {"train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0},
    "adamw": {"train.optimizer": "adamw", "train.lr": 1e-3, "train.adam_eps": 1e-6},
}

# Where AdamW's moments lie: whole, in parts, in parts beside the weights' own, and there on the host.
WITH_MOMENTS = {("zero0", True), ("zero2", True), ("zero3", True), ("zero3_offload", False)}


@pytest.mark.slow
@pytest.mark.parametrize("number_of_ranks", rows([1, 2, 4], quick=[2]), ids="{}-ranks".format)
def test_every_stage_is_one_process_pytorch(number_of_ranks: int, make_config: Callable[..., Config]):
    stages = STAGES if number_of_ranks < 4 else ("zero3",)
    optimizers = OPTIMIZERS if number_of_ranks < 4 else {"sgd": OPTIMIZERS["sgd"]}
    for optimizer, settings in optimizers.items():
        shape = {
            "data.instructions": "concise", "method.ball": "frobenius", "eval.test": False, "train.epochs": 1,
            **settings,
        }  # fmt: skip
        base = make_config(f"{optimizer}-reference", **shape)
        weights, losses = plain_loop(base, anit)
        runs = {
            (stage, checkpointing): make_config(
                f"{optimizer}-{stage}-{checkpointing}",
                **shape,
                deepspeed=str(REPOSITORY / "ds_configs" / f"{stage}.json"),
                # checkpointing off: no accumulation on two ranks; on: accumulation over several micro-batches
                **{
                    "train.activation_checkpointing": checkpointing,
                    "train.micro_batch": 2 if checkpointing else 8 // number_of_ranks,
                },
            )
            for stage in stages
            for checkpointing in (False, True)
            if not (checkpointing and "offload" in stage)
            if optimizer == "sgd" or (stage, checkpointing) in WITH_MOMENTS
        }
        run_ranks(number_of_ranks, *runs.values())
        for (stage, checkpointing), config in runs.items():
            saved = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")
            assert saved.keys() == weights.keys()
            off = max((saved[name] - weights[name]).abs().max().item() for name in weights)
            lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
            loss_off = max(abs(a["loss/clean"] - b) for a, b in zip(lines, losses, strict=False))
            what = f"{number_of_ranks} ranks {optimizer:5} {stage:13} checkpointing {checkpointing}"
            print(f"{what}: dparam {off:.1e} dloss {loss_off:.1e}")
            assert off <= 1e-5 and loss_off <= 1e-5, what
