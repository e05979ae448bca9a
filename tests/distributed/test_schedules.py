"""Padded, packed and pipelined runs end where one-process PyTorch does, whatever the ranks, stage and accumulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from formulas import anit
from matrix import rows
from plain_loop import plain_loop
from ranks import run as run_ranks
from safetensors.torch import load_file
from test_zero import OPTIMIZERS, REPOSITORY

from anit_ds.config import Config

STAGES = ("zero2", "zero3")
WAYS = {
    "padded": {},
    "padding-free": {"train.padding_free": True},
    "pipelined": {"method.schedule": "pipelined"},
    "pipelined, padding-free": {"method.schedule": "pipelined", "train.padding_free": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", rows([1, 4], quick=[4]), ids="accumulation-{}".format)
@pytest.mark.parametrize("number_of_ranks", rows([1, 2], quick=[2]), ids="{}-ranks".format)
def test_every_way_ends_in_the_same_adapter(
    number_of_ranks: int, accumulation: int, make_config: Callable[..., Config]
):
    shape = {
        "data.instructions": "concise", "method.ball": "frobenius", "eval.test": False, "train.epochs": 1,
        "train.micro_batch": 8 // (number_of_ranks * accumulation), **OPTIMIZERS["sgd"],
    }  # fmt: skip
    weights, _ = plain_loop(make_config("reference", **shape), anit)
    runs = {
        (stage, way): make_config(
            f"{stage}-{way}", **shape, **changes, deepspeed=str(REPOSITORY / "ds_configs" / f"{stage}.json")
        )
        for stage in STAGES
        for way, changes in WAYS.items()
    }
    run_ranks(number_of_ranks, *runs.values())
    for (stage, way), config in runs.items():
        saved = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")
        assert saved.keys() == weights.keys()
        off = max((saved[name] - weights[name]).abs().max().item() for name in weights)
        print(f"{number_of_ranks} ranks, accumulation {accumulation}, {stage}, {way}: dparam {off:.1e}")
        assert off <= 1e-5
