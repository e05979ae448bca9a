"""What a configuration may say about each method: one line per method, read without torch.

`METHODS[name]` names the class that makes the method (`module:Class` in `anit_ds.adversarial.methods`), the fields of
the YAML's section `method` that it reads, and how many forward-and-backward passes a step of it takes once its warm-up
is over. A new method is a file in `methods/` and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rules:
    """Who makes a method, what it reads beside `name`, and its passes per step (docs/method.md section 5)."""

    made_by: str
    reads: frozenset[str]
    passes: Callable[[Any], int]  # of the section `method`
    presets: Mapping[str, Mapping[str, Any]]  # what each preset fills in where the YAML is silent


def _rules(
    made_by: str,
    *reads: str,
    passes: int | Callable[[Any], int],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Rules:
    counted = passes if callable(passes) else lambda method: passes
    return Rules(made_by, frozenset((*reads, "schedule")), counted, presets or {})


_BALL = ("eps", "eps_unit", "tokens", "attack_none")
_NOISE = (*_BALL, "lambda_", "loss", "warmup", "ball", "start", "beta_scope", "beta", "passes")
# `paper` is the published text, `authors` what their code ran, `ours` what the study chose by its rules
# (docs/results.md): a small step along the clean gradient on a sample's text, an optimizer step for each loss, and raw
# instructions. Where there is nothing to find an attack only teaches the model to say None sooner.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"ball": "frobenius", "tokens": "prompt", "eps": 1.0, "eps_unit": "absolute", "alpha": 1e-3},
    "authors": {"ball": "none", "tokens": "all", "eps": 1.0, "eps_unit": "absolute", "alpha": 1e-3, "beta": 0.0},
    "ours": {
        "alpha": 0.05, "eps": 0.3, "eps_unit": "relative", "gradient": "clean", "start": 0.0,
        "ball": "none", "tokens": "text", "attack_none": False, "updates": "alternating",
    },
}  # fmt: skip

METHODS: dict[str, Rules] = {
    "sft": _rules("sft:SFT", passes=1),
    "noisy_sft": _rules("sft:SFT", passes=1),
    "neftune": _rules("noise_only:NEFTune", "neftune_alpha", passes=1),
    "random": _rules("noise_only:RandomStart", *_NOISE, passes=2),
    "fgsm": _rules("single_step:SingleStep", *_BALL, "lambda_", "warmup", passes=2),
    "fgm": _rules("single_step:SingleStep", *_BALL, "lambda_", "warmup", passes=2),
    "pgd": _rules("pgd:PGD", *_BALL, "alpha", "ball", "steps", "warmup", passes=lambda method: method.steps + 1),
    "freelb": _rules(
        "freelb:FreeLB", *_BALL, "alpha", "steps", "init_norm", "warmup", passes=lambda method: method.steps
    ),
    "freeat": _rules("freeat:FreeAT", *_BALL, "alpha", "ball", "steps", passes=1),
    "anit": _rules(
        "nrm:NRM", *_NOISE, "preset", "alpha", "step", "gradient", "updates", presets=_PRESETS,
        passes=lambda method: 3 if method.gradient == "attack" else 1 if method.alternates else 2,
    ),
}  # fmt: skip


def raw_unless_told(name: str, preset: str) -> bool:
    """Whether a method trains on raw instructions where the YAML is silent about `noise.kind`."""
    return name == "sft" or (name == "anit" and preset == "ours")
