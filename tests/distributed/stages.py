"""Runs on several ranks at ZeRO stages, against a hand-written PyTorch loop on one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from formulas import formulas
from plain_loop import plain_loop
from ranks import run as run_ranks
from safetensors.torch import load_file
from torch import Tensor

from anit_ds.config import Config

Changes = Mapping[str, Any]


def _zero() -> dict[str, Changes]:
    files = sorted((Path(__file__).parents[2] / "ds_configs").glob("zero*.json"))
    stages: dict[str, Changes] = {file.stem: {"deepspeed": str(file)} for file in files}
    partitioned = json.loads(Path(stages["zero3"]["deepspeed"]).read_text())
    partitioned["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return {**stages, "zero3-partitioned": {"deepspeed": partitioned}}


ZERO = _zero()
"""Our files, and stage 3 as large models know it: it would leave weights as small as these whole on every rank."""

TWO_STEPS: Changes = {
    "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "train.epochs": 1, "train.global_batch": 16,
    "train.micro_batch": 4, "train.report_to": [], "eval.test": False, "eval.max_new_tokens": 1, "data.max_dev": 2,
}  # fmt: skip
"""Two micro-batches on each of two ranks, then the epoch's last five samples dealt out over as many. SGD shows wrong
gradient scales, which Adam hides."""


def assert_plain_loops(
    make_config: Callable[..., Config],
    cases: Mapping[str, Changes],
    ways: Mapping[str, Mapping[str, Changes]],
    *,
    ranks: int = 2,
) -> None:
    """Every case trains what a plain loop does, in each of its ways: weights, and the clean loss of each step."""
    expected, runs = {}, {}
    for case, changes in cases.items():
        shape = {**TWO_STEPS, **changes}
        reference = make_config(f"{case}-reference", **shape)
        expected[case] = plain_loop(reference, formulas()[reference.method.name])
        for way, how in ways[case].items():
            runs[case, way] = make_config(f"{case}-{way}", **{**shape, **how})
    run_ranks(ranks, *runs.values())
    for (case, way), config in runs.items():
        weights, losses = expected[case]
        off, loss_off = difference(config, weights), 0.0
        if recorded := [line["loss/clean"] for line in steps(config) if "loss/clean" in line]:
            clean = losses[::2] if config.method.alternates else losses  # every second step has none
            loss_off = max(abs(a - b) for a, b in zip(recorded, clean, strict=True))
        what = f"{case}, {way}, {ranks} ranks"
        print(f"{what}: dparam {off:.1e} dloss {loss_off:.1e}")
        assert off <= 1e-5 and loss_off <= 1e-5, what


def difference(config: Config, weights: Mapping[str, Tensor]) -> float:
    """The largest between a run's best weights and those of a plain loop."""
    (file,) = (path for folder in ("adapter", "model") for path in (Path(config.out) / folder).glob("*.safetensors"))
    saved = load_file(file)
    assert saved.keys() == weights.keys()
    return torch.stack([(saved[name] - weights[name]).abs().max() for name in weights]).max().item()  # NaN if any is


def steps(config: Config) -> list[dict[str, Any]]:
    """What is on record of each optimizer step."""
    lines = map(json.loads, (Path(config.out) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "lr" in line]
