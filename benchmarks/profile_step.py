"""Where a training step spends its time on one CPU thread: SmolLM2, eight ragged rows of 14lap, bfloat16, LoRA r 16.

    python benchmarks/profile_step.py MODEL DATA                   # CPU seconds of each way, interleaved
    python benchmarks/profile_step.py MODEL DATA --profile anit    # and torch.profiler's table of one of them

MODEL is a folder or hub id of SmolLM2-135M-Instruct, DATA a folder with the 14lap files. benchmarks/PROFILE.md holds
what came out. CPU seconds of the process are robust on a busy machine; the profiler's wall times are only shares.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measuring import time_of
from torch.profiler import ProfilerActivity, profile

from anit_ds.adversarial import Batch, PerturbableLM, build_method
from anit_ds.config import Config, MethodConfig
from anit_ds.configfile import validate
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.modeling import load_model, load_tokenizer, make_trainable
from anit_ds.training.batching import collate

# name: (method, packed, activation checkpointing, checkpointing of the attack)
WAYS: dict[str, tuple[str, bool, bool, bool]] = {
    "sft": ("noisy_sft", False, False, True),
    "sft_packed": ("noisy_sft", True, False, True),
    "anit": ("anit", False, False, True),
    "anit_packed": ("anit", True, False, True),
    "anit_checkpointed": ("anit", False, True, True),
    "anit_checkpointed_but_the_attack": ("anit", False, True, False),
}


def run_config(model: str, data: str, instructions: str) -> Config:
    raw = {
        "model": {"name_or_path": model, "dtype": "bfloat16"},
        "data": {"dataset": "14lap", "path": data, "instructions": instructions, "max_length": 2048},
        "noise": {"kind": "replacement"},
        "lora": {"r": 16, "dropout": 0.05},
        "out": "unused",
    }
    return validate(raw, source="benchmarks/profile_step.py")


def micro_batches(config: Config) -> dict[bool, Batch]:
    """Eight of the first 400 training samples, drawn with a seed: padded (False) and packed (True)."""
    encoder = PromptEncoder(load_tokenizer(config.model), max_length=config.data.max_length)
    first = [sample for (sample,) in RunData.load(config, None).train_samples(seed=1, epoch=0)][:400]
    samples = encoder.encode(first)
    random.Random(0).shuffle(samples)
    samples = samples[:8]
    lengths = [len(s) for s in samples]
    print(f"tokens {lengths}, padding {1 - sum(lengths) / (8 * max(lengths)):.1%}")
    common: dict[str, Any] = {"pad_id": 0, "tokens": "prompt", "beta": [0.3] * 8, "step": 1, "denominator": 50.0}
    return {packed: collate(samples, packed=packed, **common) for packed in (False, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=str)
    parser.add_argument("--instructions", choices=["concise", "detailed"], default="concise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", choices=list(WAYS), action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = run_config(arguments.model, str(Path(arguments.data)), arguments.instructions)
    model: Any = make_trainable(load_model(config.model, torch.bfloat16), config).train()
    batches = micro_batches(config)
    lm = PerturbableLM(model)

    def step(way: str) -> None:
        name, packed, checkpointing, lm.checkpoint_attack = WAYS[way]
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        settings = {"preset": "paper", "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute"} if name == "anit" else {}
        build_method(MethodConfig(name=name, **settings), seed=1, scale=1.0).backward(lm, batches[packed])
        model.zero_grad()

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, taken in seconds.items():
            taken.append(time_of(partial(step, way)).cpu)
    for way, taken in seconds.items():
        if taken:
            print(f"{way:33} {statistics.median(taken):6.2f} CPU s  ({min(taken):.2f} to {max(taken):.2f})")
    for way in arguments.profile:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step(way)
        print(way)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
