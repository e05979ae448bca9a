"""Every method's first two steps, on two ranks at every ZeRO stage, against a hand-written PyTorch loop."""

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
    "sft": {},
    "noisy_sft": {},
    "neftune": {"neftune_alpha": 5.0},
    "random": {"eps": 1.0},
    "fgsm": {"eps": 0.05, "lambda": 0.7},
    "fgm": {"eps": 1.0, "lambda": 0.7},
    "pgd": {"eps": 1.0, "alpha": 0.4, "steps": 3},
    "freelb": {"eps": 1.0, "alpha": 0.4, "steps": 3, "init_norm": 2.0},
    "freeat": {"eps": 1.0, "alpha": 0.4, "steps": 2},
    "anit": {"eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius"},
    "anit-clean": {"eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius", "gradient": "clean"},
    "anit-switches": {"eps": 1.0, "alpha": 0.02, "eps_unit": "absolute", "ball": "frobenius", "start": 0.3,
                      "step": "sign", "loss": "consistency"},
    "noisy_sft-views": {"noise.views": 3},
    "anit-worst": {"eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius", "noise.views": 3,
                   "noise.train_on": "worst"},
}  # fmt: skip


@pytest.mark.slow
def test_two_steps_of_every_method_are_a_plain_loops(make_config: Callable[..., Config]):
    expected, runs = {}, {}
    for label, settings in METHODS.items():
        name = label.partition("-")[0]
        method = {key: value for key, value in settings.items() if "." not in key}
        elsewhere = {key: value for key, value in settings.items() if "." in key}
        shape = {
            "method": {"name": name, **method}, **elsewhere,
            "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "train.max_steps": 2,
            "train.micro_batch": 2, "eval.test": False, "data.max_dev": 2,
        }  # fmt: skip
        expected[label], _ = plain_loop(make_config(f"{label}-reference", **shape), formulas()[name])
        for stage in range(4):
            zero = {"zero_optimization": {"stage": stage}}
            runs[label, stage] = make_config(f"{label}-{stage}", **shape, deepspeed=zero)
    run_ranks(2, *runs.values())
    worst = 0.0
    for (label, stage), config in runs.items():
        saved, weights = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors"), expected[label]
        assert saved.keys() == weights.keys()
        off = max((saved[n] - weights[n]).abs().max().item() for n in weights)
        print(f"{label:10} ZeRO {stage}, 2 ranks x 2 micro-batches of 2, 2 steps: dparam {off:.1e}")
        worst = max(worst, off)
    assert worst <= 1e-5
