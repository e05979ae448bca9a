"""A killed rank loses nothing: the restarted run ends in the uninterrupted run's adapter, on these ranks or on others.

ANIT_KILLS says how many seeds to try; the suite tries 2.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import torch
from matrix import rows
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anit_ds.config import Config

KILLS = int(os.environ.get("ANIT_KILLS", "2"))
STEPS = 12
MakeConfig = Callable[..., Config]


def settings(stage: int = 2, dropout: float = 0.0) -> dict[str, object]:
    return {
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "lora.dropout": dropout,
        "train.epochs": 4,
        "train.micro_batch": 4,
        "train.checkpoint_every": 1,
        "train.log_every": 1,
        "train.rank_timeout": 60.0,
        "eval.test": False,
    }


def adapter(config: Config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")


def difference(a: Config, b: Config) -> float:
    one, two = adapter(a), adapter(b)
    assert one.keys() == two.keys() and one
    return max((one[k] - two[k]).abs().max().item() for k in one)


def steps_on_record(config: Config) -> int:
    file = Path(config.out) / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def kill_at(config: Config, number_of_ranks: int, rng: random.Random, *, during_save: bool) -> None:
    """Train until a random step, then SIGKILL a random rank there, or rank 0 inside that step's save."""
    step = rng.randint(2, STEPS - 2)
    processes = ranks.start(number_of_ranks, config, die_in_save_at=step if during_save else None)
    if not during_save:
        deadline = time.monotonic() + 300
        while steps_on_record(config) < step and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(rng.choice(processes).pid, signal.SIGKILL)
    for process in processes:
        process.join(timeout=90)
        assert process.exitcode not in (None, 0), "a rank outlived its peer, or the run ended before the kill"
    assert not (Path(config.out) / "summary.json").exists()
    if during_save:
        assert list((Path(config.out) / "checkpoints").glob(".step-*")), "the kill left no half-written checkpoint"


def assert_every_step_once(config: Config) -> None:
    lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/clean" in line] == list(range(1, STEPS + 1))
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/clean")] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", rows(range(KILLS), quick=[1]))
def test_a_killed_run_ends_bit_equal_on_the_same_ranks(make_config: MakeConfig, seed: int):
    rng = random.Random(seed)
    straight = make_config("straight", **settings(dropout=0.2))
    killed = make_config("killed", **settings(dropout=0.2))
    ranks.run(2, straight)
    kill_at(killed, 2, rng, during_save=bool(seed % 2))
    ranks.run(2, killed)
    off = difference(straight, killed)
    print(f"seed {seed}: max difference {off}")
    assert off == 0.0
    assert_every_step_once(killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    rows(
        [((2, 2), (1, 2)), ((1, 2), (2, 2)), ((2, 2), (2, 3)), ((2, 3), (1, 1)), ((1, 0), (2, 3))],
        quick=[((2, 3), (1, 1))],
    ),
    ids=["2to1-ranks", "1to2-ranks", "stage2to3", "stage3to1-2to1-ranks", "stage0to3-1to2-ranks"],
)
def test_a_killed_run_goes_on_elsewhere(make_config: MakeConfig, before: tuple[int, int], after: tuple[int, int]):
    straight = make_config("straight", **settings(before[1]))
    killed, resumed = make_config("killed", **settings(before[1])), make_config("killed", **settings(after[1]))
    ranks.run(before[0], straight)
    kill_at(killed, before[0], random.Random(0), during_save=False)
    ranks.run(after[0], resumed)
    off = difference(straight, resumed)
    print(f"ranks, stage {before} to {after}: max difference {off:.1e}")
    assert off <= 1e-5
    assert_every_step_once(resumed)
