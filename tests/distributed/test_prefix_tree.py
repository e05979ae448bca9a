"""`schedule: prefix_tree` trains the adapter that whole sequences train, at every ZeRO stage and on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matrix import rows
from nrm import FULL_NRM
from ranks import run as run_ranks
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.tiny import save_tiny

REPOSITORY = Path(__file__).parents[2]
# ZeRO-3 leaves parameters this small whole on every rank unless told otherwise.
PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
STAGES = {
    name: str(REPOSITORY / "ds_configs" / f"{name}.json")
    for name in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
} | {"zero3-partitioned": {"zero_optimization": PARTITIONED}}
SPLIT = ("zero2", "zero3-partitioned")
METHODS = {
    # One pass and no trunk: its shared tokens stand in the row itself.
    "sft": {"name": "noisy_sft"},
    "anit": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "ball": "frobenius"},
    # Several backward passes a micro-batch, each with a gradient that the method reads.
    "anit-clean": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute", "gradient": "clean"},
    "fgm": {"name": "fgm", "eps": 0.3},
    "pgd": {"name": "pgd", "eps": 1.0, "alpha": 0.3, "steps": 2},
    "freelb": {"name": "freelb", "eps": 1.0, "alpha": 0.3, "steps": 3, "init_norm": 0.5},
}
# SGD shows wrong gradient scales, which Adam hides.
SHAPE = {
    "prompt.order": "instruction_last", "eval.test": False, "train.optimizer": "sgd", "train.lr": 0.3,
    "train.weight_decay": 0.0, "train.epochs": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", rows(METHODS, quick=["anit-clean", "freelb"]))
def test_every_stage_trains_the_adapter_of_whole_sequences(method: str, make_config: Callable[..., Config]):
    whole = METHODS[method] if method == "sft" else {**METHODS[method], "tokens": "instruction"}
    reference = make_config("whole", method=whole, deepspeed=STAGES["zero0"], **SHAPE)
    # One sample a micro-batch: the short last batch of an epoch leaves some of these empty. And all at once.
    ways = [(stage, 1) for stage in (STAGES if method == "anit" else SPLIT)]
    ways += [(stage, 4) for stage in SPLIT if method == "anit"]
    runs = {
        (stage, micro): make_config(
            f"{stage}-{micro}",
            method={**whole, "schedule": "prefix_tree"},
            deepspeed=STAGES[stage],
            **SHAPE,
            **{"train.micro_batch": micro},
        )
        for stage, micro in ways
    }
    run_ranks(1, reference)
    run_ranks(2, *runs.values())
    expected = adapter(reference)
    moved = max(weights.abs().max().item() for name, weights in expected.items() if "lora_B" in name)
    assert moved > 1e-3, "lora_B starts at 0: a run that does not move it would agree with anything"
    for (stage, micro), config in runs.items():
        got = adapter(config)
        assert expected.keys() == got.keys()
        off = max((expected[name] - got[name]).abs().max().item() for name in expected)
        print(f"{method:10} {stage:17} micro-batch {micro}: dparam {off:.1e}")
        assert off <= 1e-5


@pytest.mark.slow
@pytest.mark.matrix
def test_other_families_train_the_adapter_of_whole_sequences(make_config: Callable[..., Config], tmp_path: Path):
    """Windows, soft caps and scaled embeddings, on two ranks with four micro-batches each."""
    pairs = []
    for family in ("qwen2", "gemma2", "gemma3_text"):
        folder = save_tiny(tmp_path / family, family)
        model = {"name_or_path": str(folder), "dtype": "float32", "attn": "eager" if family == "gemma2" else "sdpa"}
        whole, shape = {**METHODS["anit"], "tokens": "instruction"}, {**SHAPE, "train.max_steps": 2}
        reference = make_config(family, model=model, method=whole, deepspeed=STAGES["zero0"], **shape)
        tree = {"method": {**whole, "schedule": "prefix_tree"}, "train.micro_batch": 1}
        partitioned = STAGES["zero3-partitioned"]
        pairs.append((reference, make_config(f"{family}-tree", model=model, deepspeed=partitioned, **shape, **tree)))
    run_ranks(1, *(reference for reference, _ in pairs))
    run_ranks(2, *(run for _, run in pairs))
    for reference, run in pairs:
        expected, got = adapter(reference), adapter(run)
        off = max((expected[name] - got[name]).abs().max().item() for name in expected)
        print(f"2 ranks {Path(run.out).name}: dparam {off:.1e}")
        assert max(w.abs().max().item() for n, w in expected.items() if "lora_B" in n) > 1e-3
        assert off <= 1e-5


def adapter(config: Config) -> dict:
    return load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")
