"""A run on N ranks under ZeRO before there are any: what a rank holds, how long a step takes, what it gathers.

What is counted: the activations of every pass (footprint.py), weights, gradients and optimizer states by their numbers,
ZeRO's partitions and buffers by DeepSpeed's settings. What is assumed, and said in the output: that a device sustains
`tflops`, and the network of simulation.py. Evaluation, loading and a rank that is slow by itself are in none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from anit_ds.config import Config, ModelConfig
from anit_ds.errors import InputError
from anit_ds.planning.footprint import EMBEDDINGS, LAYER, Footprint, Weights, footprint
from anit_ds.planning.simulation import GB, Cluster, Step, play
from anit_ds.planning.workload import Workload
from anit_ds.training.auto_schedule import candidates, cheapest, no_tree_for
from anit_ds.training.batching import Split
from anit_ds.training.ds_config import REDUCE_BUCKET, read_deepspeed_json, zero_stage

_FLOAT32 = 4
_ADAM = 2 * _FLOAT32
# bitsandbytes' own: weights that share a scale, and scales that share one where they are quantised too.
_BLOCK, _BLOCKS_OF_A_SCALE = 64, 256
# DeepSpeed's own default, in elements.
_LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Forecast:
    """An optimizer step. `holds`: part -> bytes a rank holds at its worst moment.

    step: the mean of the steps that are made on a minibatch, where the method makes several.
    """

    stage: int
    split: Split
    holds: dict[str, int]
    step: Step
    replays: int

    @property
    def bytes(self) -> int:
        return sum(self.holds.values())

    def fits(self, cluster: Cluster) -> bool:
        return self.bytes <= cluster.memory * GB


@dataclass(frozen=True)
class Change:
    """A change of the configuration, and what it makes of the memory."""

    told: str
    forecast: Forecast


class Forecaster:
    """Forecasts for one workload. A step of a configuration is counted once, whatever ranks are to share it."""

    def __init__(self, workload: Workload, dtype: torch.dtype) -> None:
        self.workload, self.dtype = workload, dtype
        self._counted: dict[tuple[Any, ...], Footprint] = {}

    def forecast(self, config: Config, cluster: Cluster) -> Forecast:
        """A run as its configuration has it. Raises InputError for what the trainer would refuse of model or method."""
        split = _split(config, cluster)
        rows = split.samples * config.noise.rows  # choosing the worst of several views is not counted
        ahead = split.micro_batches > 1
        train = config.train.model_dump_json(exclude={"global_batch", "micro_batch"})
        key = config.model.model_dump_json(), config.method.model_dump_json(), train, rows, ahead
        if key not in self._counted:
            batch = self.workload.micro_batch(config, rows)
            self._counted[key] = footprint(config, batch, self.dtype, ahead=ahead)
        return _on_ranks(config, self._counted[key], self.workload, cluster, self.dtype)

    def schedules(self, config: Config, cluster: Cluster) -> dict[str, Forecast]:
        """The configured method under each schedule it can have, three passes first."""
        found = {"three_pass": self.forecast(_changed(config, {"method": {"schedule": "three_pass"}}), cluster)}
        for schedule in ("pipelined", "prefix_tree"):
            if schedule == "pipelined" and not config.method.can_be_pipelined:
                continue
            with suppress(InputError):  # a model whose attention no tree can have
                found[schedule] = self.forecast(_changed(config, {"method": {"schedule": schedule}}), cluster)
        return found

    def decided(self, config: Config, cluster: Cluster) -> Config:
        """The configuration with `schedule: auto` decided as the trainer on GPUs would, for the plan's micro-batch."""
        if config.method.schedule != "auto":
            return config
        _, settings = read_deepspeed_json(config.deepspeed)
        split = _split(config, cluster)
        step = [self.workload.micro_batch(config, split.samples * config.noise.rows)]
        counted = candidates(config, step * split.micro_batches, sharded=zero_stage(settings) == 3, on_gpu=True)
        possible = set(self.schedules(config, cluster))
        if no_tree_for(config, settings, head_is_trained=config.lora is None):
            possible.discard("prefix_tree")
        chosen = cheapest([c for c in counted if c.schedule in possible], nodes=cluster.nodes)
        return _changed(config, {"method": {"schedule": chosen}})

    def changes(self, config: Config, cluster: Cluster) -> Iterator[Change]:
        """What could be changed to need less memory, each alone."""
        _, settings = read_deepspeed_json(config.deepspeed)
        tried: list[tuple[str, dict[str, Any]]] = []
        if (samples := _split(config, cluster).samples) > 1:
            half = (samples + 1) // 2
            tried.append((f"train.micro_batch: {half}", {"train": {"micro_batch": half}}))
        if not config.train.activation_checkpointing:
            tried.append(("train.activation_checkpointing: true", {"train": {"activation_checkpointing": True}}))
        if config.method.name == "anit" and config.method.passes == "joined" and config.method.gradient == "attack":
            tried.append(("method.passes: separate", {"method": {"passes": "separate"}}))
        if config.lora is not None and not config.model.load_in_4bit and zero_stage(settings) < 3:
            tried.append(("model.load_in_4bit: true", {"model": {"load_in_4bit": True}}))
        if cluster.ranks > 1 and zero_stage(settings) < 3 and not config.model.load_in_4bit:
            tried.append(("ds_configs/zero3.json", {"deepspeed": {**settings, "zero_optimization": {"stage": 3}}}))
        for told, fields in tried:
            with suppress(InputError):  # this method or model does not go together with it
                yield Change(told, self.forecast(_changed(config, fields), cluster))


def _split(config: Config, cluster: Cluster) -> Split:
    """As the trainer has it; where it would refuse so many ranks, a sample a rank."""
    return Split.of(config.train, min(cluster.ranks, config.train.global_batch))


def _on_ranks(config: Config, counted: Footprint, workload: Workload, cluster: Cluster, dtype: torch.dtype) -> Forecast:
    split = _split(config, cluster)
    _, settings = read_deepspeed_json(config.deepspeed)
    stage, zero = zero_stage(settings), settings.get("zero_optimization", {})
    samples = config.train.global_batch
    share = workload.slowest_share(samples, split, min(cluster.ranks, samples), lockstep=stage == 3)
    steps = [
        play(
            visits, counted.weights, cluster, zero, stage=stage, itemsize=dtype.itemsize, share=share,
            reductions=split.micro_batches if stage >= 2 else 1,
        )
        for visits in counted.steps(split.micro_batches)
    ]  # fmt: skip
    holds = _holds(config, counted, split.micro_batches, zero, stage, cluster.ranks, dtype)
    return Forecast(stage, split, holds, Step.mean(steps), counted.replays)


def _holds(
    config: Config,
    counted: Footprint,
    micro_batches: int,
    zero: Mapping[str, Any],
    stage: int,
    ranks: int,
    dtype: torch.dtype,
) -> dict[str, int]:
    weights, size = counted.weights, dtype.itemsize
    trained = weights.trained
    states = (_ADAM if config.train.optimizer == "adamw" else 0) + (_FLOAT32 if dtype.itemsize < 4 or stage > 0 else 0)
    # From stage 2 on a gradient goes into its partition as soon as it is there, a layer or the embeddings at a time.
    passing = min(trained, max(weights.of(LAYER), weights.of(EMBEDDINGS))) if stage >= 2 else trained
    place = (zero.get("offload_param") or {}).get("device", "none")
    away = stage == 3 and place != "none"  # the weights are in main memory, but for those that are gathered
    parts = {
        "frozen weights": 0 if away else (weights.frozen - weights.quantised) * size / (ranks if stage == 3 else 1),
        "weights in 4 bits": weights.quantised * _bytes_in_4bit(config.model),
        "a layer in full": weights.largest_quantised * size,
        "gathered layers": _live(weights, zero) * size if stage == 3 and (ranks > 1 or away) else 0,
        "trained weights": 0 if away else trained * size / (ranks if stage == 3 else 1),
        "gradients": passing * size + trained * _FLOAT32 / (ranks if stage >= 2 else 1),
        "optimizer": 0 if zero.get("offload_optimizer") else trained * states / (ranks if stage >= 1 else 1),
        "ZeRO's buckets": 2 * min(int(zero.get("reduce_bucket_size", REDUCE_BUCKET)), trained) * size if stage else 0,
        "activations": counted.peak(micro_batches),
    }
    return {name: round(count) for name, count in parts.items() if count}


def _bytes_in_4bit(model: ModelConfig) -> float:
    """Of one weight, its share of its block's scale included."""
    scale = 1 + _FLOAT32 / _BLOCKS_OF_A_SCALE if model.bnb_4bit_use_double_quant else _FLOAT32
    return 0.5 + scale / _BLOCK


def _live(weights: Weights, zero: Mapping[str, Any]) -> int:
    """Elements that ZeRO-3 keeps gathered: up to its limit, and one layer and the embeddings whatever the limit."""
    limit = int(zero.get("stage3_max_live_parameters", _LIVE_PARAMETERS))
    return min(weights.all, max(limit, weights.of(LAYER) + weights.of(EMBEDDINGS)))


def _changed(config: Config, fields: dict[str, Any]) -> Config:
    update = {
        name: getattr(config, name).model_copy(update=value) if name != "deepspeed" else value
        for name, value in fields.items()
    }
    return config.model_copy(update=update)
