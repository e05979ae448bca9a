"""The section `method` of most tests: every part of NRM at work, where the default preset leaves most of them out."""

from __future__ import annotations

from typing import Any

FULL_NRM: dict[str, Any] = {
    "name": "anit",
    "eps": 0.3,
    "eps_unit": "relative",
    "alpha": 0.1,
    "step": "frobenius",
    "gradient": "attack",
    "updates": "joint",
    "start": 1.0,
    "ball": "linf",
    "tokens": "instruction",
}
"""A random start, the gradient of a pass of its own there, a step along g / ||g||, and a ball, on the instruction."""
