"""Every weight trained on two ranks at ZeRO stages, with the table that embeddings and head share: a plain loop's
result, for methods that reach the embeddings in different ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stages import ZERO, assert_plain_loops

from anit_ds.config import Config

METHODS: dict[str, dict[str, object]] = {
    "anit": {},
    "anit-tree": {"method.schedule": "prefix_tree", "method.tokens": "instruction", "prompt.order": "instruction_last"},
    "freelb": {"method": {"name": "freelb", "eps": 1.0, "alpha": 0.4, "steps": 2}},
}
STAGES = {"anit": ("zero0", "zero2", "zero3-partitioned")}


@pytest.mark.slow
@pytest.mark.matrix
def test_every_stage_is_a_plain_loop(make_config: Callable[..., Config]) -> None:
    cases = {label: {"lora": None, **changes} for label, changes in METHODS.items()}
    ways = {label: {zero: ZERO[zero] for zero in STAGES.get(label, ("zero3-partitioned",))} for label in METHODS}
    assert_plain_loops(make_config, cases, ways)
