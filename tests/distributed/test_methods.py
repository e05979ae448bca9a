"""Every method's first two steps, on two ranks at ZeRO stages, against a hand-written PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nrm import FULL_NRM
from stages import ZERO, assert_plain_loops

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
    "anit": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius"},
    "anit-ours": {"preset": "ours", "alpha": 0.3, "eps_unit": "absolute"},
    "anit-alternating": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "gradient": "clean",
                         "updates": "alternating", "ball": "frobenius"},
    "anit-switches": {**FULL_NRM, "eps": 1.0, "alpha": 0.02, "eps_unit": "absolute", "ball": "frobenius", "start": 0.3,
                      "step": "sign", "loss": "consistency"},
    "noisy_sft-views": {"noise.views": 3},
    "anit-worst": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius", "noise.views": 3,
                   "noise.train_on": "worst"},
}  # fmt: skip
# Three backward passes a micro-batch, whose gradients each stage adds up in its own way.
STAGES = {"freelb": ("zero0", "zero2", "zero3-partitioned")}


@pytest.mark.slow
@pytest.mark.matrix
def test_two_steps_of_every_method_are_a_plain_loops(make_config: Callable[..., Config]):
    cases = {}
    for label, settings in METHODS.items():
        method = {key: value for key, value in settings.items() if "." not in key}
        elsewhere = {key: value for key, value in settings.items() if "." in key}
        cases[label] = {"method": {"name": label.partition("-")[0], **method}, **elsewhere}
    ways = {label: {zero: ZERO[zero] for zero in STAGES.get(label, ("zero3-partitioned",))} for label in METHODS}
    assert_plain_loops(make_config, cases, ways)
