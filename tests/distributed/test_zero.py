"""Every ZeRO stage, number of ranks, accumulation and checkpointing gives one-process PyTorch's result.

The reference is tests/plain_loop.py with NRM's formula. SGD shows wrong gradient scales, which Adam hides; AdamW at
eps 1e-6 shows wrong moments.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matrix import rows
from stages import ZERO, Changes, assert_plain_loops

from anit_ds.config import Config

OPTIMIZERS: dict[str, Changes] = {
    "sgd": {},
    "adamw": {"train.optimizer": "adamw", "train.lr": 1e-3, "train.adam_eps": 1e-6, "train.weight_decay": 0.01},
}
RECOMPUTED: Changes = {"train.activation_checkpointing": True}  # and accumulated, over two micro-batches
AT_ONCE: Changes = {"train.micro_batch": 8}
UNEVEN: Changes = {"train.micro_batch": 3}  # six micro-batches for 16 samples
SHARED = {zero: {**ZERO[zero], **RECOMPUTED} for zero in ("zero0", "zero2", "zero3-partitioned")}

WAYS: dict[int, dict[str, dict[str, Changes]]] = {
    1: {"sgd": SHARED},
    2: {
        "sgd": SHARED
        | {"zero1": {**ZERO["zero1"], **UNEVEN}}
        | {zero: {**ZERO[zero], **AT_ONCE} for zero in ("zero2_offload", "zero3_offload")},
        # Where AdamW's moments lie: whole, in parts, on the host; test_kill.py has them beside weights in parts.
        "adamw": {zero: {**ZERO[zero], **AT_ONCE} for zero in ("zero0", "zero2", "zero3_offload")},
    },
    4: {"sgd": {"zero3-partitioned": {**SHARED["zero3-partitioned"], "train.micro_batch": 2}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("number_of_ranks", rows(WAYS, quick=[2]), ids="{}-ranks".format)
def test_every_stage_is_one_process_pytorch(number_of_ranks: int, make_config: Callable[..., Config]):
    ways = WAYS[number_of_ranks]
    cases = {optimizer: {"method.ball": "frobenius", **OPTIMIZERS[optimizer]} for optimizer in ways}
    assert_plain_loops(make_config, cases, ways, ranks=number_of_ranks)
