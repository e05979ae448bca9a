"""Each method of method.md section 5 against its formula written out in plain PyTorch on `inputs_embeds`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM, build_method
from anit_ds.config import METHOD_KEYS, MethodConfig
from anit_ds.tiny import tiny_model

EPS, ALPHA, LAMBDA = 0.7, 0.3, 0.6


def model_and_batch() -> tuple[nn.Module, Batch, Tensor]:
    model = peft.get_peft_model(
        tiny_model().requires_grad_(False),
        peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0),
    )
    with torch.no_grad():
        for number, p in enumerate(q for q in model.parameters() if q.requires_grad):
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    ids = torch.randint(2, 250, (3, 11), generator=torch.Generator().manual_seed(1))
    attended = torch.arange(11) < torch.tensor([11, 8, 10])[:, None]
    labels = torch.where(attended & (torch.arange(11) >= torch.tensor([8, 6, 7])[:, None]), ids, -100)
    return model, Batch.from_labels(ids, attended, labels, beta=0.4, step=2), labels


class Reference:
    """The loss as transformers computes it, on embeddings that a formula chooses."""

    def __init__(self) -> None:
        self.model, self.batch, self.labels = model_and_batch()
        self.e = self.model.get_input_embeddings()(self.batch.input_ids).detach()
        self.scope = self.batch.scope.unsqueeze(-1).float()

    def loss(self, x: Tensor) -> Tensor:
        logits = self.model(inputs_embeds=x, attention_mask=self.batch.attended.long()).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.labels[:, 1:].flatten(), ignore_index=-100)

    def gradient(self, delta: Tensor) -> Tensor:
        delta = delta.clone().requires_grad_(True)
        return torch.autograd.grad(self.loss(self.e + delta), delta)[0] * self.scope

    @staticmethod
    def unit(g: Tensor) -> Tensor:
        return g / g.flatten(1).norm(dim=1)[:, None, None]

    @staticmethod
    def on_ball(delta: Tensor) -> Tensor:
        return delta * (EPS / delta.flatten(1).norm(dim=1)[:, None, None]).clamp(max=1.0)


def fgsm(r: Reference) -> Tensor:
    return r.loss(r.e) + LAMBDA * r.loss(r.e + EPS * r.gradient(torch.zeros_like(r.e)).sign())


def fgm(r: Reference) -> Tensor:
    return r.loss(r.e) + LAMBDA * r.loss(r.e + EPS * r.unit(r.gradient(torch.zeros_like(r.e))))


def pgd(r: Reference) -> Tensor:
    delta = torch.zeros_like(r.e)
    for _ in range(4):
        delta = r.on_ball(delta + ALPHA * r.unit(r.gradient(delta)))
    return r.loss(r.e + delta)


def freelb(r: Reference) -> Tensor:
    delta, total = torch.zeros_like(r.e), torch.tensor(0.0)
    for _ in range(4):
        total = total + r.loss(r.e + delta) / 4
        delta = r.on_ball(delta + ALPHA * r.unit(r.gradient(delta)))
    return total


CASES: dict[str, tuple[dict[str, object], Callable[[Reference], Tensor], int]] = {
    "sft": ({}, lambda r: r.loss(r.e), 1),
    "noisy_sft": ({}, lambda r: r.loss(r.e), 1),
    "fgsm": ({"eps": EPS, "lambda": LAMBDA}, fgsm, 2),
    "fgm": ({"eps": EPS, "lambda": LAMBDA}, fgm, 2),
    "pgd": ({"eps": EPS, "alpha": ALPHA, "steps": 4}, pgd, 5),
    "freelb": ({"eps": EPS, "alpha": ALPHA, "steps": 4}, freelb, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_a_method_is_its_formula(name: str):
    settings, formula, passes = CASES[name]
    reference = Reference()
    formula(reference).backward()
    expected = {n: p.grad for n, p in reference.model.named_parameters() if p.grad is not None}
    model, batch, _ = model_and_batch()
    method = build_method(MethodConfig(name=name, **settings), seed=1, scale=1.0)
    method.backward(PerturbableLM(model), batch)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    off = max((got[n] - expected[n]).abs().max().item() for n in expected)
    largest = max(g.abs().max().item() for g in expected.values())
    print(f"{name}: max gradient difference {off:.1e} of {largest:.1e}")
    assert largest > 1e-2 and all(g.isfinite().all() for g in got.values())
    assert got.keys() == expected.keys() and off <= 1e-5
    assert method.passes == passes


def seen_inputs(name: str, **settings: object) -> tuple[Tensor, Tensor, Batch]:
    """(e, what the last training pass saw in place of it, the batch)."""
    model, batch, _ = model_and_batch()
    lm = PerturbableLM(model)
    e, seen = lm.embeddings(batch), []
    original = lm.losses
    lm.losses = lambda batch, inputs=(None,): seen.append(inputs[-1]) or original(batch, inputs)
    build_method(MethodConfig(name=name, **settings), seed=1, scale=1.0).backward(lm, batch)
    return e, seen[-1].detach(), batch


def test_neftune_has_transformers_bounds_and_distribution():
    e, x, batch = seen_inputs("neftune", neftune_alpha=5.0)
    full = (x - e)[0]  # a row without padding: there the two definitions agree
    bound = 5.0 / (full.numel() ** 0.5)  # transformers: mag = alpha / sqrt(T * D), uniform in [-mag, mag]
    assert full.abs().max() <= bound * (1 + 1e-5)
    assert full.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(full.mean().item()) < 0.1 * bound
    assert ((x - e)[~batch.attended] == 0).all()


def test_random_is_anits_start_without_its_step():
    settings = {"eps": EPS, "lambda": LAMBDA, "ball": "frobenius", "tokens": "prompt"}
    e, x, batch = seen_inputs("random", **settings)
    _, anit, _ = seen_inputs("anit", **settings, alpha=0.0, eps_unit="absolute")
    assert torch.allclose(x, anit, atol=1e-6)
    assert torch.allclose((x - e).flatten(1).norm(dim=1), torch.tensor(EPS), rtol=1e-4)


def test_freeat_carries_delta_from_replay_to_replay_and_starts_anew():
    reference, (model, batch, _) = Reference(), model_and_batch()
    method = build_method(MethodConfig(name="freeat", eps=EPS, alpha=ALPHA, steps=3), seed=1, scale=1.0)
    lm, delta, seen = PerturbableLM(model), torch.zeros_like(reference.e), 0.0
    for step in range(6):
        delta = torch.zeros_like(delta) if step % 3 == 0 else delta
        for p in model.parameters():
            p.grad = None
        method.backward(lm, replace(batch, step=step))
        reference.model.zero_grad()
        reference.loss(reference.e + delta).backward()
        expected = {n: p.grad for n, p in reference.model.named_parameters() if p.grad is not None}
        got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        seen = max(seen, max((got[n] - expected[n]).abs().max().item() for n in expected))
        delta = reference.on_ball(delta + ALPHA * reference.unit(reference.gradient(delta)))
    print(f"freeat: max gradient difference over 6 steps {seen:.1e}")
    assert seen <= 1e-5


def test_every_method_of_the_configuration_can_be_built():
    for name in METHOD_KEYS:
        assert build_method(MethodConfig(name=name), seed=1, scale=1.0).passes >= 1
