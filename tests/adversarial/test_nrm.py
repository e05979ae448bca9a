"""NRM on models of every supported family: what docs/method.md section 4 promises of loss, gradient and delta."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from anit_ds.adversarial import NRM, SFT, Batch, PerturbableLM, PrefixTreeLM
from anit_ds.adversarial.dropout import dropout_rates
from anit_ds.adversarial.partly_trained import PartlyTrainedLora
from anit_ds.errors import InputError
from anit_ds.tiny import FAMILIES, tiny_model

BETA = 0.3


def lora_model(family: str = "llama", dtype: torch.dtype = torch.float32, **lora: object) -> nn.Module:
    torch.manual_seed(1)
    model = tiny_model(family).to(dtype).requires_grad_(False)
    settings = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.0, "init_lora_weights": False, **lora}
    return peft.get_peft_model(model, peft.LoraConfig(**settings), autocast_adapter_dtype=False)


def ragged_batch(*, left: bool = False, extra: int = 0, scope: str = "prompt") -> Batch:
    """Four samples of 9 to 12 tokens with answers of 2 to 4, padded to 12 + extra on either side."""
    rng = torch.Generator().manual_seed(3)
    width = 12 + extra
    ids, labels = torch.zeros(4, width, dtype=torch.long), torch.full((4, width), -100)
    attended, scoped = torch.zeros(4, width, dtype=torch.bool), torch.zeros(4, width, dtype=torch.bool)
    for row, (length, answer) in enumerate([(12, 3), (9, 2), (10, 4), (11, 2)]):
        tokens = torch.randint(2, 250, (length,), generator=rng)
        start = width - length if left else 0
        stop, prompt = start + length, start + length - answer
        ids[row, start:stop], attended[row, start:stop] = tokens, True
        labels[row, prompt:stop] = tokens[length - answer :]
        scoped[row, start : {"prompt": prompt, "all": stop, "instruction": start + 4}[scope]] = True
    return Batch.from_labels(
        ids, attended, labels, scope=scoped, sample_ids=torch.tensor([7, 2**40, 11, 5]), beta=BETA, step=9
    )


def lora_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients_after(method: object, batch: Batch, model: nn.Module | None = None) -> tuple[dict[str, Tensor], dict]:
    model = lora_model() if model is None else model
    lm = PerturbableLM(model)
    stats = method.backward(lm, batch)
    lm.remove()
    return lora_gradients(model), {k: (v[0] / v[1]).item() for k, v in stats.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max((a[k] - b[k]).abs().max().item() for k in a)


def delta_of(batch: Batch, lm: PerturbableLM, **settings: object) -> Tensor:
    """delta1 [B, T, D] as the first block would see it."""
    method = NRM(**settings)
    e, _, g = lm.input_gradient(batch, lambda e: method._start(e, batch))
    return method._step(g, e, batch)[0].float() - e.float()


def test_lambda_zero_is_sft_to_the_bit_with_separate_passes():
    batch = ragged_batch()
    sft, sft_stats = gradients_after(SFT(), batch)
    nrm, nrm_stats = gradients_after(NRM(alpha=0.3, lambda_=0.0, passes="separate"), batch)
    assert all(torch.equal(sft[k], nrm[k]) for k in sft)
    assert sft_stats["loss/clean"] == nrm_stats["loss/clean"]


def test_lambda_zero_is_sft_in_a_joined_pass():
    batch = ragged_batch()
    sft, _ = gradients_after(SFT(), batch)
    nrm, _ = gradients_after(NRM(alpha=0.3, lambda_=0.0, passes="joined"), batch)
    assert largest_difference(sft, nrm) <= 1e-6


def test_joined_and_separate_passes_agree():
    batch = ragged_batch()
    joined, _ = gradients_after(NRM(alpha=0.3), batch)
    separate, _ = gradients_after(NRM(alpha=0.3, passes="separate"), batch)
    assert largest_difference(joined, separate) <= 1e-6


@pytest.mark.parametrize("ball", ["frobenius", "linf"])
def test_eps_zero_weighs_the_clean_loss_one_plus_lambda(ball: str):
    batch = ragged_batch()
    sft, _ = gradients_after(SFT(), batch)
    nrm, stats = gradients_after(NRM(eps=0.0, alpha=0.5, lambda_=0.7, ball=ball), batch)
    assert largest_difference({k: 1.7 * v for k, v in sft.items()}, nrm) <= 1e-6
    assert stats["loss/adversarial"] == pytest.approx(stats["loss/clean"], abs=1e-6)


def test_an_attack_leaves_parameter_gradients_untouched():
    model, batch = lora_model(), ragged_batch()
    lm = PerturbableLM(model)
    SFT().backward(lm, batch)
    before = lora_gradients(model)
    lm.input_gradient(batch, lambda e: e + 0.1)
    after = lora_gradients(model)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("left, extra", [(True, 0), (False, 5), (True, 7)], ids=["left", "right+5", "left+7"])
def test_padding_side_and_amount_change_nothing(left: bool, extra: int):
    method = NRM(alpha=0.3, ball="linf")
    plain, plain_stats = gradients_after(method, ragged_batch())
    padded, padded_stats = gradients_after(method, ragged_batch(left=left, extra=extra))
    assert largest_difference(plain, padded) <= 1e-5
    assert padded_stats == pytest.approx(plain_stats, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_add_up_to_the_batch(micro: int):
    batch, method = ragged_batch(), NRM(alpha=0.3)
    whole, _ = gradients_after(method, batch)
    model = lora_model()
    lm = PerturbableLM(model)
    for first in range(0, 4, micro):
        rows = slice(first, first + micro)
        inside = (batch.target_rows >= first) & (batch.target_rows < first + micro)
        part = replace(
            batch,
            **{k: getattr(batch, k)[rows] for k in ("input_ids", "attended", "scope", "sample_ids", "beta")},
            target_rows=batch.target_rows[inside] - first,
            target_positions=batch.target_positions[inside],
            target_ids=batch.target_ids[inside],
            denominator=float(len(batch.target_ids)),
        )
        method.backward(lm, part)
    assert largest_difference(whole, lora_gradients(model)) <= 1e-5


@pytest.mark.parametrize("eps, alpha", [(0.5, 0.1), (1.0, 5.0), (0.01, 1.0)])
def test_delta_stays_in_its_ball(eps: float, alpha: float):
    lm, batch = PerturbableLM(lora_model()), ragged_batch()
    frobenius = delta_of(batch, lm, eps=eps, alpha=alpha, ball="frobenius").flatten(1).norm(dim=1)
    assert (frobenius <= eps * (1 + 1e-5)).all()
    linf = delta_of(batch, lm, eps=eps, alpha=alpha, ball="linf").abs().amax()
    assert linf <= eps * (1 + 1e-5)


def test_the_random_start_does_not_depend_on_padding_or_scope():
    lm = PerturbableLM(lora_model())
    method = NRM(eps=1.0)

    def start(batch: Batch) -> list[Tensor]:
        e = lm.module.get_input_embeddings()(batch.input_ids).detach()
        delta = method._start(e, batch) - e
        scale = batch.scope.sum(1).sqrt()[:, None, None]  # N depends on the scope; the random numbers must not
        delta = delta * scale
        return [delta[row][batch.attended[row]] for row in range(4)]

    right, left = start(ragged_batch(scope="all")), start(ragged_batch(left=True, extra=3, scope="all"))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(right, left, strict=True))
    prompt, instruction = start(ragged_batch(scope="prompt")), start(ragged_batch(scope="instruction"))
    for whole, first, four in zip(right, prompt, instruction, strict=True):
        assert torch.allclose(whole[:4], four[:4], atol=1e-5) and torch.allclose(whole[:5], first[:5], atol=1e-5)
        assert (four[4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_block_sees_e_plus_delta(family: str, dtype: torch.dtype):
    model, batch = lora_model(family, dtype), ragged_batch()
    lm = PerturbableLM(model)
    e = lm.module.get_input_embeddings()(batch.input_ids).detach()
    with torch.no_grad():  # what goes in without any hook of ours is the reference
        raw = model.get_input_embeddings()(batch.input_ids)
    assert torch.equal(e, raw)
    method = NRM(eps=1.0)
    expected = method._start(e, batch)
    seen = []
    first_block = model.get_base_model().model.layers[0]
    handle = first_block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    lm.input_gradient(batch, lambda e: method._start(e, batch))
    lm.losses(batch, (None, expected))
    handle.remove()
    assert torch.equal(seen[0], expected) and seen[0].dtype is dtype
    assert torch.equal(seen[1], torch.cat([e, expected]))
    moved = (expected.float() - e.float()).abs()
    assert (moved[batch.scope] > 0).float().mean() > 0.9 and (moved[~batch.scope] == 0).all()


class LinearLM(nn.Module):
    """logits = W e: d(summed cross-entropy)/de = W^T (softmax(W e) - onehot), known in closed form."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


def test_the_gradient_step_against_a_closed_form():
    model = LinearLM()
    lm = PerturbableLM(model)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 3, 4], [-100, -100, -100, 8]])
    batch = Batch.from_labels(ids, torch.ones_like(ids, dtype=torch.bool), labels, beta=1.0)  # beta 1: delta0 is 0
    e, _, g = lm.input_gradient(batch)
    weight = model.head.weight.detach()
    expected = torch.zeros_like(e)
    for row, position in [(0, 1), (0, 2), (1, 2)]:
        error = (e[row, position] @ weight.T).softmax(-1)
        error[ids[row, position + 1]] -= 1
        expected[row, position] = error @ weight
    assert torch.allclose(g, expected, atol=1e-6)
    delta = delta_of(batch, lm, eps=10.0, alpha=0.3, ball="frobenius")
    scoped = expected * batch.scope.unsqueeze(-1)
    direction = scoped / scoped.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(delta, 0.3 * direction, atol=1e-6)


def test_gradient_clean_takes_two_passes_and_steps_along_the_clean_gradient():
    model, batch = lora_model(), ragged_batch()
    method = NRM(alpha=0.4, gradient="clean", ball="none")
    reference = copy.deepcopy(model)
    lm = PerturbableLM(reference)
    e, _, g = lm.input_gradient(batch)
    x1, _ = method._step(g, e, batch)
    (clean,), (adversarial,) = lm.losses(batch), lm.losses(batch, (x1,))
    ((clean.sum() + adversarial.sum()) / batch.mean_over).backward()
    gradients, stats = gradients_after(method, batch, model)
    assert largest_difference(gradients, lora_gradients(reference)) <= 1e-6
    norms = batch.norm_per_sample(g * batch.scope.unsqueeze(-1))[batch.attended.any(1)]
    assert stats["nrm/grad_norm"] == pytest.approx(norms.mean().item(), rel=1e-4), "as with gradient: attack"


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("ball", ["frobenius", "linf", "none"])
def test_a_sign_step_has_the_statistics_of_a_frobenius_step(ball: str, packed: bool):
    """Against norms and products written out over each row's scope; the start and g are those of the other step."""
    batch = ragged_batch()
    settings = {"eps": 0.4, "alpha": 0.35, "ball": ball, "start": 0.7}
    e, g = torch.randn(2, 4, 12, 32, generator=torch.Generator().manual_seed(2))
    g[2, 0, 5] = float("inf")
    given = (g[batch.attended][None], e[batch.attended][None], batch.packed()) if packed else (g, e, batch)
    x1, sign = NRM(**settings, step="sign")._step(*given)
    _, frobenius = NRM(**settings)._step(*given)
    delta = torch.zeros_like(e)
    delta[batch.attended] = x1[0] - e[batch.attended] if packed else (x1 - e)[batch.attended]
    scope, eps = batch.scope.unsqueeze(-1), settings["eps"]
    stepped = NRM(**settings)._start(e, batch) - e + settings["alpha"] * (g.sign() * scope * sign.finite[:, None, None])
    norm = stepped.flatten(1).norm(dim=1)
    clipped = {"frobenius": norm > eps, "linf": stepped.abs().flatten(1).amax(1) > eps, "none": norm < 0}[ball]
    assert torch.equal(sign.finite, torch.tensor([True, True, False, True])) and torch.equal(sign.clipped, clipped)
    assert torch.allclose(sign.delta1_norm, delta.flatten(1).norm(dim=1), rtol=1e-4)
    dot = (delta * g.where(scope, 0.0)).flatten(1).sum(1).where(sign.finite, 0.0)
    assert torch.allclose(sign.delta_dot_grad, dot, rtol=1e-3, atol=1e-4)
    assert torch.allclose(sign.delta0_norm, frobenius.delta0_norm, rtol=1e-5)
    assert torch.allclose(sign.grad_norm, frobenius.grad_norm, rtol=1e-5)


@pytest.mark.parametrize("gradient", ["attack", "clean"])
def test_a_step_has_its_length_in_a_batch_of_any_size(gradient: str):
    """||g|| is clamped at 1e-8, and is that of the summed loss: not of its share in a mean over very many tokens."""
    nrm = NRM(alpha=0.1, start=0.0, ball="none", gradient=gradient)
    for tokens in (6.0, 1e9):
        _, stats = gradients_after(nrm, replace(ragged_batch(), denominator=tokens))
        assert stats["nrm/delta1_norm"] == pytest.approx(0.1) and stats["nrm/grad_norm"] > 1e-3


@pytest.mark.parametrize("step", ["frobenius", "sign"])
def test_a_gradient_that_is_not_finite_is_counted_and_the_rest_goes_on(step: str):
    model, batch = lora_model(), ragged_batch()
    lm = PerturbableLM(model)
    original = lm.input_gradient

    def poisoned(*args: object) -> tuple[Tensor, Tensor, Tensor]:
        e, x, g = original(*args)
        g[1, 0, 0] = float("nan")
        return e, x, g

    lm.input_gradient = poisoned
    stats = NRM(alpha=0.3, step=step).backward(lm, batch)
    assert (stats["nrm/nonfinite"][0] / stats["nrm/nonfinite"][1]).item() == pytest.approx(0.25)
    assert all(torch.isfinite(g).all() for g in lora_gradients(model).values())
    assert all(torch.isfinite(pair).all() for pair in stats.values())


def test_dropout_is_off_in_the_attack_and_on_in_training():
    model = lora_model(lora_dropout=0.5).train()
    lm, batch = PerturbableLM(model), ragged_batch()
    first, second = (lm.input_gradient(batch)[2] for _ in range(2))
    assert torch.equal(first, second)
    (one,), (two,) = lm.losses(batch), lm.losses(batch)
    assert not torch.equal(one, two)


# Dropouts in modules whose rate is read, as a module's own number, in a module that has an attention's name.
DROPPING = {
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "n_head": 4, "n_embd": 32, "n_layer": 2},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3, "ffn_dim": 64, "word_embed_proj_dim": 32,
            "num_attention_heads": 4, "num_hidden_layers": 2},
    "falcon": {"attention_dropout": 0.3, "hidden_dropout": 0.3, "num_attention_heads": 4, "num_hidden_layers": 2},
    "bloom": {"attention_dropout": 0.3, "n_head": 4},
}  # fmt: skip


@pytest.mark.parametrize("family", DROPPING)
def test_no_dropout_of_any_family_is_left_in_the_attack(family: str):
    settings = transformers.AutoConfig.for_model(family, vocab_size=512, hidden_size=32, **DROPPING[family])
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").train()
    lm, batch = PerturbableLM(model), ragged_batch()
    assert lm.dropout.matters
    rates = {name: dropout_rates(module) for name, module in model.named_modules()}
    first, second = (lm.input_gradient(batch)[2] for _ in range(2))
    assert torch.equal(first, second) and first.any()
    assert rates == {name: dropout_rates(module) for name, module in model.named_modules()}
    assert not torch.equal(*(lm.losses(batch)[0] for _ in range(2)))
    with pytest.raises(InputError, match="pipelined"):
        PartlyTrainedLora(model.requires_grad_(False))


def test_a_sample_s_first_token_is_predicted_from_nothing():
    found = []
    for left in (False, True):
        batch = ragged_batch(left=left, extra=2)
        labels = batch.input_ids.masked_fill(~batch.attended, -100)
        whole = Batch.from_labels(batch.input_ids, batch.attended, labels, scope=batch.attended)
        assert len(whole.target_ids) == int(batch.attended.sum()) - 4
        found += [PerturbableLM(tiny_model()).losses(form)[0] for form in (whole, whole.packed())]
    assert all(torch.allclose(found[0], other, atol=1e-4) for other in found[1:])


def test_tokens_that_peft_puts_in_front_are_refused():
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="puts tokens before every sample"):
        PerturbableLM(peft.get_peft_model(tiny_model(), settings))
    roberta = transformers.AutoConfig.for_model(
        "roberta", vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, is_decoder=True
    )
    with pytest.raises(InputError, match="counts positions from behind its padding"):
        PerturbableLM(transformers.AutoModelForCausalLM.from_config(roberta))


@pytest.mark.parametrize(
    "settings",
    [
        {"ball": "l2"},
        {"step": "signed"},
        {"gradient": "Clean"},
        {"loss": "kl"},
        {"loss": "consistency", "passes": "separate"},
        {"eps": -1.0},
    ],
    ids=str,
)
def test_a_setting_that_is_none_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NRM(**settings)


def test_what_is_no_batch_is_refused():
    batch = ragged_batch()
    ids, labels = batch.input_ids, torch.full_like(batch.input_ids, -100)
    assert bool(Batch.from_labels(ids, None, labels).attended.all())
    with pytest.raises(ValueError, match=r"attended: \[4, T\] as input_ids \[4, 12\], not \[4, 5\]"):
        Batch.from_labels(ids, batch.attended[:, :5], labels)
    with pytest.raises(ValueError, match="beta: a distortion from 0 to 1, not 2"):
        Batch.from_labels(ids, batch.attended, labels, beta=2.0)
    nobody = batch.attended & (torch.arange(4) > 0)[:, None]
    with pytest.raises(ValueError, match="a sample without an attended token"):
        Batch.from_labels(ids, nobody, labels).packed()


@pytest.mark.parametrize("kind", [PerturbableLM, PrefixTreeLM])
def test_after_a_pass_that_fails_a_forward_is_plain(kind: type[PerturbableLM]):
    model, batch = lora_model(), ragged_batch()
    other = torch.randint(2, 250, (2, 20), generator=torch.Generator().manual_seed(5))
    expected = model(input_ids=other).logits

    def fail(*_: object) -> None:
        raise MemoryError

    lm = kind(model)
    prepared = lm.prepare(batch)
    (losses,) = lm.losses(prepared, (lambda e: e + 1,))
    losses.register_hook(fail)
    with pytest.raises(MemoryError):
        lm.backward(losses.sum())
    assert torch.equal(model(input_ids=other).logits, expected)
    layer = model.get_base_model().model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        lm.losses(prepared, (lambda e: e + 1,))
    layer.remove()
    assert torch.equal(model(input_ids=other).logits, expected)


@pytest.mark.parametrize("kind", [PerturbableLM, PrefixTreeLM])
@pytest.mark.parametrize("loss", ["ce", "consistency"])
def test_a_rank_without_a_sample_takes_part(loss: str, kind: type[PerturbableLM]):
    """Its filler is one token, with nothing to attack and nothing to learn."""
    ids = torch.tensor([[5]])
    lm = kind(lora_model())
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    batch = Batch.from_labels(ids, None, torch.full_like(ids, -100), scope=nothing, denominator=3.0)
    stats = NRM(alpha=0.3, loss=loss).backward(lm, lm.prepare(batch))
    assert stats["loss/adversarial"][0] == 0 and not any(g.any() for g in lora_gradients(lm.module).values())


def test_an_attack_may_keep_its_activations_where_training_recomputes():
    plain, _ = gradients_after(NRM(alpha=0.3), ragged_batch())
    model, forwards = lora_model().train(), []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.get_base_model().model.layers[0].input_layernorm.register_forward_hook(
        lambda m, args, out: forwards.append(len(out))
    )
    lm = PerturbableLM(model)
    NRM(alpha=0.3).backward(lm, ragged_batch())
    assert forwards == [4, 4, 8, 8]  # each forward and its recomputation
    assert largest_difference(plain, lora_gradients(model)) <= 1e-6
    model.zero_grad()
    forwards.clear()
    lm.checkpoint_attack = False
    NRM(alpha=0.3).backward(lm, ragged_batch())
    assert forwards == [4, 8, 8]
    assert largest_difference(plain, lora_gradients(model)) <= 1e-6


def test_losses_are_those_of_transformers():
    model, batch = lora_model("gemma2"), ragged_batch()  # soft-capped logits
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.target_rows, batch.target_positions + 1] = batch.target_ids
    expected = model(input_ids=batch.input_ids, attention_mask=batch.attended.long(), labels=labels).loss
    lm = PerturbableLM(model)
    (losses,) = lm.losses(batch)
    assert (losses.sum() / batch.mean_over).item() == pytest.approx(expected.item(), rel=1e-5)
