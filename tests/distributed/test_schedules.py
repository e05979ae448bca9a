"""Packed and pipelined runs on two ranks end where one-process PyTorch does, whatever the stage and accumulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from matrix import rows
from stages import ZERO, Changes, assert_plain_loops

from anit_ds.config import Config

PACKED: Changes = {"train.padding_free": True}
PIPELINED: Changes = {"method.schedule": "pipelined"}
BOTH: Changes = {**PACKED, **PIPELINED}
# A first attack, one in the middle and a last; the epoch's last three samples leave half of the micro-batches empty.
THREE: Changes = {"train.micro_batch": 3}
ONE: Changes = {"train.micro_batch": 9}

QUICK = {
    "packed, zero3": {**ZERO["zero3-partitioned"], **THREE, **PACKED},
    "pipelined, zero3": {**ZERO["zero3-partitioned"], **THREE, **PIPELINED},
    "pipelined and packed, zero2": {**ZERO["zero2"], **THREE, **BOTH},
    "pipelined, one micro-batch, zero2": {**ZERO["zero2"], **ONE, **PIPELINED},
}
REST = {
    "packed, zero2": {**ZERO["zero2"], **THREE, **PACKED},
    "pipelined, zero2": {**ZERO["zero2"], **THREE, **PIPELINED},
    "pipelined and packed, zero3": {**ZERO["zero3-partitioned"], **THREE, **BOTH},
    "pipelined and packed, one micro-batch, zero3": {**ZERO["zero3-partitioned"], **ONE, **BOTH},
}


@pytest.mark.slow
@pytest.mark.parametrize("ways", rows([QUICK, REST], quick=[QUICK]), ids=["four", "others"])
def test_every_way_ends_in_the_same_adapter(ways: Mapping[str, Changes], make_config: Callable[..., Config]):
    shape = {"method.ball": "frobenius", "train.global_batch": 18}
    assert_plain_loops(make_config, {"anit": shape}, {"anit": ways})
