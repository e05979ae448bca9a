"""On a GPU: every mode's gradients are the CPU's, no step waits for the device, and a training learns and resumes.

`make gpu-test` runs it, after the kernels' own tests. With ANIT_GPU_REHEARSAL=1 it runs on a CPU against itself, so
that nothing but the GPU is new on the day that there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from nrm import FULL_NRM
from resumed import assert_a_resume_is_exact
from torch import Tensor

from anit_ds.adversarial import Batch, PerturbableLM, PrefixTreeLM, build_method
from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config, MethodConfig
from anit_ds.data.prompts import Encoded
from anit_ds.tiny import tiny_model
from anit_ds.training import train
from anit_ds.training.batching import collate

REHEARSAL = os.environ.get("ANIT_GPU_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="needs a GPU"),
]

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packed": True},
    "tree": {"packed": True, "schedule": "prefix_tree"},
}
SWITCHED: dict[str, dict[str, Any]] = {
    "anit-attack": FULL_NRM,
    "anit-sign": {**FULL_NRM, "step": "sign", "start": 0.1},
    "anit-consistency": {**FULL_NRM, "loss": "consistency"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [*METHODS, *SWITCHED])
def test_gradients_are_the_cpu_s_and_no_step_waits(method: str, layout: str) -> None:
    expected = gradients(method, layout, "cpu", torch.float32)
    found = gradients(method, layout, DEVICE, torch.float32)
    assert expected.norm() > 0
    # Sums in another order, and signs of gradients that are nearly nothing.
    assert (found - expected).norm() <= 2e-3 * expected.norm()


def gradients(method: str, layout: str, device: str, dtype: torch.dtype) -> Tensor:
    """The adapter's gradient of one batch, flat, on the CPU."""
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0, init_lora_weights=False)
    model = tiny_model("llama").to(dtype).requires_grad_(False)
    model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False).train().to(device)
    lm = (PrefixTreeLM if "schedule" in LAYOUTS[layout] else PerturbableLM)(model)
    lm.spare_masks()
    built = build_method(MethodConfig(**SWITCHED.get(method, {"name": method})), seed=1, scale=1.0)
    batch = lm.prepare(samples(layout)).to(device)
    for _ in range(2):  # kernels are compiled in the first, which waits
        model.zero_grad()
        with nothing_waits(device):
            built.backward(lm, batch)
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


def samples(layout: str) -> Batch:
    shared = list(range(10, 22))
    made = [
        Encoded(
            key, [*shared, *range(30, 30 + n), 5, 6, 7, 8], [9] * (n % 3 + 1), (12 + n, 15 + n), (12, 12 + n), 0.0, "x"
        )
        for key, n in enumerate((3, 9, 5))
    ]
    packed = LAYOUTS[layout].get("packed", False)
    return collate(made, pad_id=0, tokens="prompt", beta=[0.2] * 3, step=0, denominator=6.0, packed=packed)


@contextmanager
def nothing_waits(device: str) -> Iterator[None]:
    """Inside, what waits for the GPU is an error."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_training_learns_and_resumes(dtype: str, stage: str, make_config: Callable[..., Config]) -> None:
    """The loss falls; without its last checkpoint the run goes on from the one before and ends with the same bits."""
    if REHEARSAL and dtype == "float16":
        pytest.skip("float16 does not train on a CPU")
    shape = {"model.dtype": dtype, "deepspeed": str(Path(__file__).parents[2] / f"ds_configs/{stage}.json")}
    config = make_config(**shape, **{"train.epochs": 8, "train.lr": 1e-2, "lora.r": 16, "train.checkpoint_every": 20})
    train(config)
    out = Path(config.out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/clean"] for line in lines if "loss/clean" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert_a_resume_is_exact(config, last="step-000024")
