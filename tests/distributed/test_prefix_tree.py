"""`schedule: prefix_tree` on two ranks at ZeRO stages trains what a plain loop over whole sequences does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from matrix import rows
from nrm import FULL_NRM
from stages import ZERO, assert_plain_loops

from anit_ds.config import Config
from anit_ds.tiny import save_tiny

ANIT = {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius"}
METHODS = {
    # One pass and no trunk: its shared tokens stand in the row itself.
    "sft": {"name": "noisy_sft"},
    "anit": ANIT,
    # Several backward passes a micro-batch, each with a gradient that the method reads.
    "anit-clean": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "gradient": "clean"},
    "ours": {"name": "anit", "preset": "ours", "alpha": 0.3, "eps_unit": "absolute"},
    "fgm": {"name": "fgm", "eps": 0.3, "tokens": "instruction"},
    "pgd": {"name": "pgd", "eps": 1.0, "alpha": 0.3, "steps": 2, "tokens": "instruction"},
    "freelb": {"name": "freelb", "eps": 1.0, "alpha": 0.3, "steps": 3, "init_norm": 0.5, "tokens": "instruction"},
}
# The last batch of the epoch is one sample: a rank has none in it.
SHAPE = {"prompt.order": "instruction_last", "train.global_batch": 20, "train.micro_batch": 5}

# Raw instructions that stand first are the trunk of an attack on the text.
DEFAULT = {**SHAPE, "prompt.order": "paper", "noise": {"kind": "none"}}

# A trunk's backward pass comes behind one training pass, or behind several.
QUICK = {"anit": ("zero3-partitioned",), "freelb": ("zero2",), "ours": ("zero2",)}
REST = {
    "sft": ("zero3-partitioned",),
    "anit": ("zero0", "zero1", "zero2_offload", "zero3_offload"),
    "anit-clean": ("zero2", "zero3-partitioned"),
    "ours": ("zero3-partitioned",),
    "fgm": ("zero3-partitioned",),
    "pgd": ("zero3-partitioned",),
    "freelb": ("zero3-partitioned",),
}


@pytest.mark.slow
@pytest.mark.parametrize("stages", rows([QUICK, REST], quick=[QUICK]), ids=["three", "all others"])
def test_every_stage_trains_what_whole_sequences_do(
    stages: Mapping[str, tuple[str, ...]], make_config: Callable[..., Config]
):
    cases = {method: {**(DEFAULT if method == "ours" else SHAPE), "method": METHODS[method]} for method in stages}
    ways = {
        method: {zero: {**ZERO[zero], "method": {**METHODS[method], "schedule": "prefix_tree"}} for zero in zeros}
        for method, zeros in stages.items()
    }
    ways["ours"]["auto"] = {**ZERO["zero3-partitioned"], "method": {**METHODS["ours"], "schedule": "auto"}}
    assert_plain_loops(make_config, cases, ways)


@pytest.mark.slow
@pytest.mark.matrix
def test_other_families_train_what_whole_sequences_do(make_config: Callable[..., Config], tmp_path: Path):
    """Windows, soft caps and scaled embeddings."""
    cases = {}
    for family in ("qwen2", "gemma2", "gemma3_text"):
        folder = save_tiny(tmp_path / family, family)
        model = {"name_or_path": str(folder), "dtype": "float32", "attn": "eager" if family == "gemma2" else "sdpa"}
        cases[family] = {**SHAPE, "model": model, "method": ANIT}
    tree = {**ZERO["zero3-partitioned"], "method": {**ANIT, "schedule": "prefix_tree"}}
    assert_plain_loops(make_config, cases, dict.fromkeys(cases, {"tree": tree}))
