"""One rank's loss is NaN: no rank takes the step, and the run is a plain loop's that leaves the step out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import formulas
import pytest
import ranks
import torch
from plain_loop import plain_loop
from stages import TWO_STEPS, ZERO, difference, steps
from torch import Tensor

from anit_ds.config import Config


def anit_where_finite(step: formulas.Step) -> Tensor:
    """Without a gradient, AdamW and SGD leave weights and moments as they are."""
    loss = formulas.anit(step)
    return loss if loss.isfinite() else torch.zeros((), requires_grad=True)


@pytest.mark.slow
def test_no_rank_takes_a_step_that_one_of_them_lost(
    make_config: Callable[..., Config], broken_token: Path, broken_text: Path
) -> None:
    settings = {
        **TWO_STEPS, "model.name_or_path": str(broken_token), "data.path": str(broken_text), "method.ball": "frobenius",
        "train.optimizer": "adamw", "train.lr": 1e-3, "train.adam_eps": 1e-6, "train.global_batch": 8,
    }  # fmt: skip
    weights, losses = plain_loop(make_config("reference", **settings), anit_where_finite)
    lost = [math.isnan(loss) for loss in losses]
    assert sum(lost) == 1 and len(lost) == 3
    # What looks at a gradient: our own guard, ZeRO's over gradients in parts, and over weights in parts.
    runs = [make_config(zero, **settings, **ZERO[zero]) for zero in ("zero0", "zero2", "zero3-partitioned")]
    ranks.run(2, *runs)
    for run in runs:
        assert json.loads((Path(run.out) / "summary.json").read_text())["nonfinite_steps"] == 1
        assert [step["loss/clean"] is None for step in steps(run)] == lost
        assert difference(run, weights) <= 1e-5, run.out
