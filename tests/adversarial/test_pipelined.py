"""`schedule: pipelined`: attack rows in the training pass change neither the attack nor the training."""

from __future__ import annotations

from itertools import product
from typing import Any

import peft
import pytest
import torch
from matrix import rows
from nrm import FULL_NRM
from torch import Tensor, nn

from anit_ds.adversarial import NRM, Batch, PerturbableLM, PipelinedNRM, StepStats
from anit_ds.config import MethodConfig
from anit_ds.errors import InputError
from anit_ds.tiny import tiny_model

SETTINGS: dict[str, Any] = {"eps": 1.0, "alpha": 0.3, "lambda_": 0.7, "ball": "frobenius", "start": 0.6, "seed": 1}
WIDTHS = (14, 9, 17)


def lora_model(family: str = "llama", *, base: dict[str, Any] | None = None, **lora: Any) -> nn.Module:
    torch.manual_seed(1)
    model = tiny_model(family, **(base or {})).requires_grad_(False)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **lora}
    return peft.get_peft_model(model, peft.LoraConfig(**settings), autocast_adapter_dtype=False).train()


def window(widths: tuple[int, ...] = WIDTHS, *, packed: bool = False) -> list[Batch]:
    """The micro-batches of one optimizer step, each of three ragged samples, the last holding a filler."""
    rng = torch.Generator().manual_seed(4)
    batches = []
    for number, width in enumerate(widths):
        ids = torch.randint(2, 250, (3, width), generator=rng)
        lengths = torch.tensor([width, width - 3, 1 if number == len(widths) - 1 else width - 1])
        attended = torch.arange(width) < lengths[:, None]
        labels = torch.where(
            attended & (torch.arange(width) >= lengths[:, None] - 2) & (lengths[:, None] > 1), ids, -100
        )
        scope = attended & (labels == -100) & (lengths[:, None] > 1)
        batch = Batch.from_labels(
            ids, attended, labels, scope=scope, sample_ids=torch.arange(3) + 10 * number, beta=0.3, step=5,
            denominator=20.0,
        )  # fmt: skip
        batches.append(batch.packed() if packed else batch)
    return batches


def train(method: NRM, model: nn.Module, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and statistics of a window, each micro-batch under a seed of its own as the trainer does it."""
    lm, stats = PerturbableLM(model), StepStats()
    if isinstance(method, PipelinedNRM):
        method.attach(lm)
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        if isinstance(method, PipelinedNRM):
            method.foresee(batches[number + 1] if number + 1 < len(batches) else None)
        stats.merge(method.backward(lm, batch))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {k: (v[0] / v[1]).item() for k, v in stats.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and max(g.abs().max().item() for g in a.values()) > 1e-2
    return max((a[k] - b[k]).abs().max().item() for k in a)


EVERY = list(product(["llama", "qwen2", "gemma"], [False, True], [False, True]))


@pytest.mark.parametrize(
    ("family", "packed", "checkpointing"),
    rows(EVERY, quick=[of for of in EVERY if of[0] == "llama" or not (of[1] or of[2])]),
)
def test_a_window_has_the_gradients_of_three_passes(family: str, packed: bool, checkpointing: bool):
    model = lora_model(family)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pipelined, pipelined_stats = train(PipelinedNRM(**SETTINGS), model, window(packed=packed))
    three, three_stats = train(NRM(**SETTINGS), lora_model(family), window())
    off = largest_difference(three, pipelined)
    print(f"{family} packed {packed}: gradients differ by {off:.1e}")
    assert off <= 1e-5
    assert pipelined_stats == pytest.approx(three_stats, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_dropout_is_on_in_training_rows_and_off_in_attack_rows(packed: bool):
    # Rows of one width, so that both schedules draw their masks for the same training rows.
    batches = window((14, 14, 14), packed=packed)
    seen: list[Tensor] = []

    class Recording(PipelinedNRM):
        def _attack(self, lm: PerturbableLM, batch: Batch) -> tuple[Tensor, Tensor]:
            e, g = super()._attack(lm, batch)
            seen.append(g)
            return e, g

    pipelined, _ = train(Recording(**SETTINGS), lora_model(lora_dropout=0.5), batches)
    three, _ = train(NRM(**SETTINGS), lora_model(lora_dropout=0.5), batches)
    without, _ = train(NRM(**SETTINGS), lora_model(), batches)
    assert largest_difference(pipelined, three) <= 1e-5
    assert largest_difference(pipelined, without) > 1e-2
    lm, method = PerturbableLM(lora_model()), NRM(**SETTINGS)
    for batch, g in zip(batches, seen, strict=True):
        alone = lm.input_gradient(batch, lambda e, batch=batch: method._start(e, batch))[2]
        assert (alone - g)[batch.attended].abs().max() <= 1e-5 * alone.abs().max()


def test_the_attack_rows_take_one_pass_each_and_training_brings_the_others_along():
    model, passes = lora_model(), []
    model.get_base_model().model.embed_tokens.register_forward_hook(lambda m, args, e: passes.append(len(args[0])))
    train(PipelinedNRM(**SETTINGS), model, window())
    assert passes == [3, 9, 9, 6]


def test_half_precision_keeps_the_attacks_scale():
    """An engine that multiplies every loss, as float16's loss scale does, changes neither g nor its norm."""

    class Scaling(PerturbableLM):
        def backward(self, loss: Tensor, *, last: bool = True) -> None:
            super().backward(1024.0 * loss, last=last)

    batches, stats = window(), []
    for kind in (PerturbableLM, Scaling):
        lm, method, total = kind(lora_model()), PipelinedNRM(**SETTINGS), StepStats()
        method.attach(lm)
        for batch, upcoming in zip(batches, [*batches[1:], None], strict=True):
            method.foresee(upcoming)
            total.merge(method.backward(lm, batch))
        stats.append({k: (v[0] / v[1]).item() for k, v in total.items()})
    assert stats[0] == pytest.approx(stats[1], rel=1e-5)


@pytest.mark.parametrize(
    "lora, base, what",
    [
        ({"modules_to_save": ["embed_tokens"]}, {}, "this run trains .*embed_tokens"),
        ({"trainable_token_indices": [3]}, {}, "this run trains .*embed_tokens"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {}, "this run trains .*lora_embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, {"tie_word_embeddings": False}, "this run trains .*lm_head"),
        ({"use_dora": True}, {}, "this run trains .*magnitude"),
        ({"lora_bias": True}, {}, "this run trains .*bias"),
        ({}, {"attention_dropout": 0.1}, "base model's dropout of 0.1 in .*self_attn"),
    ],
    ids=["modules_to_save", "tokens", "embedding", "head", "dora", "bias", "attention-dropout"],
)
def test_what_it_cannot_keep_apart_is_refused(lora: dict, base: dict, what: str):
    model = lora_model(base=base, **lora)
    with pytest.raises(InputError, match=rf"method\.schedule: .*{what}.*; use method\.schedule=three_pass"):
        PipelinedNRM(**SETTINGS).attach(PerturbableLM(model))


@pytest.mark.parametrize(
    "change", [{"gradient": "clean"}, {"passes": "separate"}, {"name": "random"}, {"loss": "consistency"}], ids=str
)
def test_other_methods_and_passes_are_refused(change: dict):
    with pytest.raises(ValueError, match="schedule"):
        MethodConfig(**{**FULL_NRM, "schedule": "pipelined", **change})
