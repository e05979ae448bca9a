"""A model that computes something else in a run's rows is found before it is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from anit_ds.adversarial import Batch, PerturbableLM, PrefixTreeLM
from anit_ds.adversarial.rehearsal import rehearse
from anit_ds.errors import InputError
from anit_ds.tiny import FAMILIES, tiny_model, tiny_pair

# Layers that drop what they are told of rows (Nemotron), leave a window to the mask (PhiMoE, Doge), or add sinks.
STRANGERS: dict[str, dict[str, int]] = {
    "nemotron": {}, "phimoe": {"sliding_window": 8}, "doge": {"sliding_window": 8}, "mimo_v2_flash": {},
}  # fmt: skip
WAYS = ["packed", "tree", "padded"]


def pair() -> Batch:
    """Two samples that begin alike, padded on the right as the trainer pads them."""
    return replace(Batch.from_labels(*tiny_pair()), right_padded=True)


def stranger(kind: str) -> nn.Module:
    model = tiny_model(kind, tie_word_embeddings=False, **STRANGERS[kind])
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.1)  # of the usual 0.02 such small layers would move nothing
    return model.eval()


def made_ready(model: nn.Module, way: str) -> tuple[PerturbableLM, Batch]:
    lm = PrefixTreeLM(model) if way == "tree" else PerturbableLM(model)
    if way == "padded":
        lm.spare_masks()
    return lm, lm.prepare(pair().packed() if way == "packed" else pair())


def whole_losses(model: nn.Module) -> list[float]:
    """Each sample's answer loss from the model alone, without padding."""
    batch, found = pair(), []
    for ids, length in zip(batch.input_ids, batch.attended.sum(1).tolist(), strict=True):
        labels = ids[:length].clone()
        labels[: length - 3] = -100
        with torch.no_grad():
            found.append(model(input_ids=ids[None, :length], labels=labels[None]).loss.item() * 3)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*FAMILIES, "nanochat"])
def test_the_families_that_training_is_tested_on_pass(family: str, way: str):
    model = tiny_model(family)
    expected = whole_losses(model)
    lm, batch = made_ready(model, way)
    rehearse(lm, batch)
    assert whole_losses(model) == pytest.approx(expected, rel=1e-5), "nothing of it stays on the model"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_is_refused_in_rows_and_keeps_its_masks_where_padded(kind: str, way: str):
    model = stranger(kind)
    expected = whole_losses(model)
    lm, batch = made_ready(model, way)
    if way != "padded":
        with pytest.raises(InputError, match=rf"a {kind} model .*; use train.padding_free=false and method.schedule"):
            rehearse(lm, batch)
        return
    rehearse(lm, batch)
    with torch.no_grad():
        (losses,) = lm.losses(batch)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
