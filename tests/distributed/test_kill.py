"""A killed rank loses nothing: the restarted run ends in the uninterrupted run's adapter, on other ranks in a plain
loop's.

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
from formulas import anit
from matrix import rows
from plain_loop import plain_loop
from safetensors.torch import load_file
from stages import TWO_STEPS, ZERO, difference
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anit_ds.config import Config

KILLS = int(os.environ.get("ANIT_KILLS", "2"))
STEPS = 6
MakeConfig = Callable[..., Config]


def settings(zero: str, dropout: float = 0.0) -> dict[str, object]:
    return {
        **TWO_STEPS,
        **ZERO[zero],
        "lora.dropout": dropout,
        "method.ball": "frobenius",
        "train.optimizer": "adamw",
        "train.lr": 1e-3,
        "train.adam_eps": 1e-6,
        "train.epochs": 2,
        "train.global_batch": 8,
        "train.checkpoint_every": 1,
        "train.log_every": 1,
        "train.rank_timeout": 60.0,
        "train.report_to": ["tensorboard"],
    }


def steps_on_record(config: Config) -> int:
    file = Path(config.out) / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def kill_at(config: Config, number_of_ranks: int, rng: random.Random, *, during_save: bool) -> None:
    """Train until a random step, then SIGKILL a random rank there, or rank 0 inside that step's save."""
    step = rng.randint(2, STEPS - 3)
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
    straight, killed = (make_config(name, **settings("zero2", dropout=0.2)) for name in ("straight", "killed"))
    kill_at(killed, 2, random.Random(seed), during_save=bool(seed % 2))
    ranks.run(2, killed, straight)
    off = difference(killed, load_file(Path(straight.out) / "adapter" / "adapter_model.safetensors"))
    print(f"seed {seed}: max difference {off}")
    assert off == 0.0
    assert_every_step_once(killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    rows(
        [
            ((2, "zero3-partitioned"), (1, "zero1")),
            ((1, "zero0"), (2, "zero3-partitioned")),
            ((2, "zero2"), (1, "zero0")),
        ],
        quick=[((2, "zero3-partitioned"), (1, "zero1")), ((2, "zero2"), (1, "zero0"))],
    ),
    ids=["stage3to1-2to1-ranks", "stage0to3-1to2-ranks", "stage2to0-2to1-ranks"],
)
def test_a_killed_run_goes_on_elsewhere(make_config: MakeConfig, before: tuple[int, str], after: tuple[int, str]):
    killed, resumed = (make_config("killed", **settings(zero)) for _, zero in (before, after))
    weights, _ = plain_loop(killed, anit)
    kill_at(killed, before[0], random.Random(0), during_save=False)
    ranks.run(after[0], resumed)
    off = difference(resumed, weights)
    print(f"ranks, stage {before} to {after}: max difference {off:.1e}")
    assert off <= 1e-5
    assert_every_step_once(resumed)
