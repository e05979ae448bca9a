"""Each method of docs/method.md section 5 against its formula written out in plain PyTorch on `inputs_embeds`."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
import torch.nn.functional as F
from formulas import Step, formulas
from nrm import FULL_NRM
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM, build_method, embedding_scale
from anit_ds.adversarial.rules import METHODS
from anit_ds.config import MethodConfig
from anit_ds.tiny import tiny_model

EPS, ALPHA, LAMBDA = 0.7, 0.3, 0.6
SHAPE = {"eps": EPS, "lambda": LAMBDA, "eps_unit": "absolute", "ball": "frobenius", "tokens": "prompt"}
ANIT = {**{key: value for key, value in FULL_NRM.items() if key != "name"}, **SHAPE, "alpha": ALPHA}


def model_and_batch(*, full: bool = False) -> tuple[nn.Module, Batch, Tensor]:
    """`full`: every weight is trained, the table that embeddings and head share among them."""
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0)
    model = tiny_model() if full else peft.get_peft_model(tiny_model().requires_grad_(False), lora)
    with torch.no_grad():
        for number, p in enumerate(q for q in model.parameters() if q.requires_grad):
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    ids = torch.randint(2, 250, (3, 11), generator=torch.Generator().manual_seed(1))
    attended = torch.arange(11) < torch.tensor([11, 8, 10])[:, None]
    labels = torch.where(attended & (torch.arange(11) >= torch.tensor([8, 6, 7])[:, None]), ids, -100)
    return model, Batch.from_labels(ids, attended, labels, beta=0.4, step=2), labels


def step_of(name: str, settings: dict[str, object], *, full: bool = False) -> tuple[nn.Module, Step]:
    """The loss as transformers computes it, on embeddings that a formula chooses."""
    model, batch, labels = model_and_batch(full=full)

    def loss(x: Tensor) -> Tensor:
        logits = model(inputs_embeds=x, attention_mask=batch.attended.long()).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def log_probs(x: Tensor) -> Tensor:
        logits = model(inputs_embeds=x, attention_mask=batch.attended.long()).logits
        return logits[:, :-1][labels[:, 1:] != -100].log_softmax(-1)

    e = model.get_input_embeddings()(batch.input_ids)
    return model, Step(batch, e, loss, MethodConfig(name=name, **settings), log_probs=log_probs)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


CASES: dict[str, dict[str, object]] = {
    "sft": {},
    "noisy_sft": {},
    "neftune": {},
    "random": {"eps": EPS, "lambda": LAMBDA},
    "fgsm": {"eps": EPS, "lambda": LAMBDA},
    "fgm": {"eps": EPS, "lambda": LAMBDA},
    "pgd": {"eps": EPS, "alpha": ALPHA, "steps": 4},
    "freelb": {"eps": EPS, "alpha": ALPHA, "steps": 4, "init_norm": 2.0},
    "anit": ANIT,
    "anit-clean": {**ANIT, "gradient": "clean"},
    "anit-start": {**ANIT, "start": 0.3, "ball": "none"},
    "anit-no start": {**ANIT, "start": 0.0},
    "anit-sign": {**ANIT, "step": "sign", "alpha": 0.05, "eps": 0.3, "start": 0.3, "ball": "linf"},
    "anit-sign, frobenius": {**ANIT, "step": "sign"},
    "anit-ours": {"preset": "ours", "updates": "joint", "alpha": ALPHA, "lambda": LAMBDA, "eps_unit": "absolute"},
    "anit-consistency": {**ANIT, "loss": "consistency"},
    "anit-consistency, sign": {**ANIT, "loss": "consistency", "step": "sign", "alpha": 0.1, "start": 0.0},
    "random-consistency": {"eps": EPS, "lambda": LAMBDA, "loss": "consistency"},
    "random-start": {"eps": EPS, "lambda": LAMBDA, "start": 0.1, "ball": "linf"},
}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_a_method_is_its_formula(case: str, full: bool):
    name, settings = case.partition("-")[0], CASES[case]
    reference, step = step_of(name, settings, full=full)
    formulas()[name](step).backward()
    expected = gradients(reference)
    model, batch, _ = model_and_batch(full=full)
    rows: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, e: rows.append(len(e)))
    config = MethodConfig(name=name, **settings)
    build_method(config, seed=1, scale=1.0).backward(PerturbableLM(model), batch)
    got = gradients(model)
    off = max((got[n] - expected[n]).abs().max().item() for n in expected)
    largest = max(g.abs().max().item() for g in expected.values())
    print(f"{case}: max gradient difference {off:.1e} of {largest:.1e}")
    assert largest > 1e-2 and all(g.isfinite().all() for g in got.values())
    assert got.keys() == expected.keys() and off <= 1e-5
    assert sum(rows) == batch.size * METHODS[name].passes(config), "as `anit compare` counts its compute"


def seen_inputs(name: str, **settings: object) -> tuple[Tensor, Tensor, Batch]:
    """(e, what the last training pass saw in place of it, the batch)."""
    model, batch, _ = model_and_batch()
    lm = PerturbableLM(model)
    e, seen = lm.module.get_input_embeddings()(batch.input_ids).detach(), []
    # The hook of `lm` comes first, so this one is shown what the first block will see.
    lm.module.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    config = MethodConfig(name=name, **settings)
    scale = embedding_scale(model, config.eps_unit) if config.eps_unit != "absolute" else 1.0
    build_method(config, seed=1, scale=scale).backward(lm, batch)
    return e, seen[-1][-len(e) :], batch


def test_neftune_has_transformers_bounds_and_distribution():
    e, x, batch = seen_inputs("neftune", neftune_alpha=5.0)
    full = (x - e)[0]  # a row without padding: there the two definitions agree
    bound = 5.0 / (full.numel() ** 0.5)  # transformers: mag = alpha / sqrt(T * D), uniform in [-mag, mag]
    assert full.abs().max() <= bound * (1 + 1e-5)
    assert full.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(full.mean().item()) < 0.1 * bound
    assert ((x - e)[~batch.attended] == 0).all()


def test_random_is_anits_start_without_its_step():
    e, x, batch = seen_inputs("random", **SHAPE)
    _, anit, _ = seen_inputs("anit", **{**ANIT, "alpha": 0.0})
    assert torch.allclose(x, anit, atol=1e-6)
    assert torch.allclose((x - e).flatten(1).norm(dim=1), torch.tensor(EPS), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("freeat", {"eps": EPS, "alpha": ALPHA, "steps": 3}),
        ("anit", {**ANIT, "lambda": LAMBDA, "gradient": "clean", "updates": "alternating"}),
        ("anit", {"lambda": LAMBDA, "updates": "alternating", "eps_unit": "absolute", "alpha": ALPHA}),
    ],
    ids=["freeat", "anit", "anit, signs"],
)
def test_a_method_that_replays_carries_over_and_starts_anew_with_each_minibatch(name: str, settings: dict[str, object]):
    (reference, step), (model, batch, _) = step_of(name, settings), model_and_batch()
    method = build_method(MethodConfig(name=name, **settings), seed=1, scale=1.0)
    lm, formula, off = PerturbableLM(model), formulas()[name], 0.0
    for number in range(6):
        for m in (model, reference):
            m.zero_grad()
        method.backward(lm, replace(batch, step=number))
        formula(replace(step, batch=replace(batch, step=number))).backward()
        got, expected = gradients(model), gradients(reference)
        off = max(off, max((got[n] - expected[n]).abs().max().item() for n in expected))
    print(f"{name}: max gradient difference over 6 steps {off:.1e}")
    assert off <= 1e-5


@pytest.mark.parametrize("settings", [{"name": "freeat"}, {"gradient": "clean", "updates": "alternating"}], ids=str)
def test_a_method_that_replays_refuses_another_minibatch(settings: dict[str, object]):
    model, batch, _ = model_and_batch()
    lm, method = PerturbableLM(model), build_method(MethodConfig(**settings), seed=1, scale=1.0)
    with pytest.raises(ValueError, match="step 5: a method with . replays is given the same minibatch"):
        method.backward(lm, replace(batch, step=5))
    method.backward(lm, replace(batch, step=6))
    with pytest.raises(ValueError, match="step 7: a method with . replays is given the same minibatch"):
        method.backward(lm, replace(batch, step=7).packed())


def test_every_method_of_the_configuration_can_be_built():
    for name in METHODS:
        assert callable(build_method(MethodConfig(name=name), seed=1, scale=1.0).backward)


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({}, "alternating"),
        ({"gradient": "attack"}, "joint"),
        ({"updates": "joint"}, "joint"),
        ({"preset": "paper"}, "joint"),
    ],
    ids=str,
)
def test_the_default_has_a_step_for_each_loss_where_the_clean_pass_gives_the_gradient(
    settings: dict[str, object], updates: str
):
    assert MethodConfig(**settings).updates == updates
    with pytest.raises(ValueError, match="use gradient: clean, not attack"):
        MethodConfig(gradient="attack", updates="alternating")


@pytest.mark.parametrize("tokens", ["prompt", "instruction"])
def test_fgsm_in_the_unit_of_an_element(tokens: str):
    """Each element in scope moves by 3% of the table's root mean square, and it is anit's sign step without a start."""
    settings: dict[str, object] = {"eps_unit": "element", "eps": 0.03, "lambda": LAMBDA, "tokens": tokens}
    e, x, batch = seen_inputs("fgsm", **settings)
    as_anit = {"step": "sign", "alpha": 0.03, "start": 0.0, "gradient": "clean", "ball": "none", "updates": "joint"}
    _, anit, _ = seen_inputs("anit", **settings, **as_anit)
    table = model_and_batch()[0].get_input_embeddings().weight.detach()
    size = 0.03 * table.square().mean().sqrt()
    moved = (x - e).abs()
    assert torch.allclose(moved[batch.scope], size.expand_as(moved[batch.scope]), rtol=1e-3)
    assert (moved[~batch.scope] == 0).all() and torch.equal(x, anit)


@pytest.mark.parametrize("name", [name for name, rules in METHODS.items() if "warmup" in rules.reads])
def test_a_method_begins_when_its_warm_up_ends(name: str):
    """Of 6 steps, 2 on the clean loss alone: the second is sft to the bit, in its one pass, the third the method."""
    joint = {"updates": "joint"} if name == "anit" else {}
    plain, begun = MethodConfig(name=name, **joint), MethodConfig(name=name, warmup=0.3, **joint)
    passes = METHODS[name].passes(plain)
    for number in (1, 2):
        seen = {}
        for label, config in {"sft": MethodConfig(name="sft"), name: plain, "warm": begun}.items():
            model, batch, _ = model_and_batch()
            forwards: list[int] = []
            model.get_input_embeddings().register_forward_hook(lambda m, args, e, n=forwards: n.append(len(e)))
            method = build_method(config, seed=1, scale=1.0, total_steps=6)
            method.backward(PerturbableLM(model), replace(batch, step=number))
            seen[label] = gradients(model)
            assert label != "warm" or sum(forwards) == 3 * (1 if number < 2 else passes)
        expected, other = ("sft", name) if number < 2 else (name, "sft")
        assert all(torch.equal(g, seen["warm"][n]) for n, g in seen[expected].items())
        assert not all(torch.equal(g, seen["warm"][n]) for n, g in seen[other].items())
    with pytest.raises(ValueError, match="build_method needs total_steps"):
        build_method(begun, seed=1, scale=1.0)


@pytest.mark.parametrize("change", [{"passes": "separate"}, {"gradient": "clean"}], ids=str)
def test_consistency_takes_one_pass_over_both(change: dict[str, str]):
    with pytest.raises(ValueError, match="loss: consistency compares clean and perturbed rows of one pass"):
        MethodConfig(**{**FULL_NRM, "loss": "consistency", **change})
