"""Packed batches are padded ones without the padding: the same losses, gradients and statistics, method by method."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from matrix import rows
from nrm import FULL_NRM
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM, build_method
from anit_ds.adversarial.join import join, join_tokens, split_tokens
from anit_ds.adversarial.rules import METHODS as RULES
from anit_ds.adversarial.segments import SegmentAttention
from anit_ds.config import MethodConfig
from anit_ds.data.prompts import Encoded
from anit_ds.errors import InputError
from anit_ds.tiny import FAMILIES, tiny_model
from anit_ds.training.batching import collate

LENGTHS = (13, 1, 9, 17)
ANSWERS = (3, 0, 2, 4)  # the second sample is a filler: one token, nothing to predict, nothing in scope
# Every way of making a delta and of running its passes.
METHODS: dict[str, MethodConfig] = {
    **{name: MethodConfig(name=name) for name in RULES},
    "freelb-start": MethodConfig(name="freelb", eps=0.5, alpha=0.2, init_norm=0.4),
    "pgd-linf": MethodConfig(name="pgd", eps=0.05, alpha=0.2, ball="linf"),
    "anit-sign": MethodConfig(**FULL_NRM | {"step": "sign", "alpha": 0.05, "eps": 0.03}),
    "anit-consistency": MethodConfig(**FULL_NRM | {"loss": "consistency", "alpha": 0.3}),
    "anit-start": MethodConfig(**FULL_NRM | {"start": 0.2}),
    **{
        f"anit-{ball}-{passes}-{gradient}": MethodConfig(
            name="anit", preset="paper", ball=ball, alpha=0.3, passes=passes, gradient=gradient
        )
        for ball, passes, gradient in [
            ("frobenius", "joined", "attack"),
            ("none", "separate", "attack"),
            ("linf", "joined", "clean"),
        ]
    },
}


def lora_model(family: str = "llama", **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    model = tiny_model(family, **changes).requires_grad_(False)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, settings, autocast_adapter_dtype=False)


def ragged_batch(*, left: bool = False) -> Batch:
    rng = torch.Generator().manual_seed(3)
    width = max(LENGTHS) + 2
    ids, labels = torch.zeros(4, width, dtype=torch.long), torch.full((4, width), -100)
    attended, scope = torch.zeros(4, width, dtype=torch.bool), torch.zeros(4, width, dtype=torch.bool)
    for row, (length, answer) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        start = width - length if left else 0
        stop = start + length
        ids[row, start:stop] = torch.randint(2, 250, (length,), generator=rng)
        attended[row, start:stop] = True
        labels[row, stop - answer : stop] = ids[row, stop - answer : stop]
        scope[row, start : stop - answer] = answer > 0
    return Batch.from_labels(
        ids, attended, labels, scope=scope, sample_ids=torch.tensor([7, 2**40, 11, 5]), beta=0.3, step=9
    )


def outcome(
    method: MethodConfig, batch: Batch, model: nn.Module, *, spare_masks: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and statistics of one micro-batch, and of the steps before it on the same one."""
    lm = PerturbableLM(model)
    if spare_masks:
        lm.spare_masks()
    built = build_method(method, seed=1, scale=1.0)
    for step in range(batch.step - batch.step % built.replays, batch.step + 1):
        stats = built.backward(lm, replace(batch, step=step))
    lm.remove()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, {k: (v[0] / v[1]).item() for k, v in stats.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and a
    assert max(g.abs().max().item() for g in a.values()) > 1e-2
    return max((a[k] - b[k]).abs().max().item() for k in a)


@pytest.mark.parametrize(
    ("method", "family"),
    rows(product(METHODS, ["llama", "qwen2", "gemma"]), quick=[(method, "llama") for method in METHODS]),
)
def test_every_method_gives_the_padded_gradients(method: str, family: str):
    padded, padded_stats = outcome(METHODS[method], ragged_batch(), lora_model(family))
    packed, packed_stats = outcome(METHODS[method], ragged_batch().packed(), lora_model(family))
    off = largest_difference(padded, packed)
    print(f"{family:6} {method:27} gradients differ by {off:.1e}")
    assert off <= 1e-5
    assert packed_stats == pytest.approx(padded_stats, rel=1e-4, abs=1e-6)


# Windows of 8 are shorter than two of the samples; the cap of 2 bends scores that are near 1.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "gemma2-window": ("gemma2", {"sliding_window": 8}),
    "gemma2-cap": ("gemma2", {"attn_logit_softcapping": 2.0, "sliding_window": 8}),
    "gemma3-window": ("gemma3_text", {"sliding_window": 8}),
    "gemma3-window-all-layers": ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "eager": ("llama", {"attn_implementation": "eager"}),
}


@pytest.mark.parametrize(
    ("variant", "checkpointing"),
    rows(
        product(VARIANTS, [False, True]),
        quick=[*((variant, False) for variant in VARIANTS), ("llama", True), ("gemma2-window", True)],
    ),
)
def test_attention_of_every_family(variant: str, checkpointing: bool):
    family, changes = VARIANTS[variant]
    models = [lora_model(family, **changes).train() for _ in range(2)]
    if checkpointing:
        for model in models:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    method = METHODS["anit-frobenius-joined-attack"]
    padded, padded_stats = outcome(method, ragged_batch(left=True), models[0])
    packed, packed_stats = outcome(method, ragged_batch(left=True).packed(), models[1])
    off = largest_difference(padded, packed)
    print(f"{variant}: gradients differ by {off:.1e}")
    assert off <= 1e-5 and packed_stats == pytest.approx(padded_stats, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_behind_the_tokens_needs_no_mask(variant: str):
    family, changes = VARIANTS[variant]
    method = METHODS["anit-frobenius-joined-attack"]
    masked, masked_stats = outcome(method, ragged_batch(), lora_model(family, **changes))
    model, given = lora_model(family, **changes), []
    model.register_forward_pre_hook(lambda _, args, kwargs: given.append(set(kwargs)), with_kwargs=True)
    plain, plain_stats = outcome(method, replace(ragged_batch(), right_padded=True), model)
    assert given == [{"input_ids", "use_cache"}] * 2  # the attack's pass and the joined one
    off = largest_difference(masked, plain)
    # As the trainer runs it.
    right = replace(ragged_batch(), right_padded=True)
    spared, spared_stats = outcome(method, right, lora_model(family, **changes), spare_masks=True)
    off_as_trained = largest_difference(masked, spared)
    print(f"{variant}: gradients differ by {off:.1e} and {off_as_trained:.1e}")
    assert max(off, off_as_trained) <= 1e-5
    assert plain_stats == pytest.approx(masked_stats, rel=1e-4, abs=1e-6)
    assert spared_stats == pytest.approx(masked_stats, rel=1e-4, abs=1e-6)


def test_batches_of_a_run_are_known_to_be_padded_on_the_right():
    samples = [Encoded(key, [1] * n, [2] * 2, (0, n), (0, 0), 0.0, "x") for key, n in enumerate((3, 5))]
    settings: dict[str, Any] = {"pad_id": 0, "tokens": "prompt", "beta": [0.0] * 2, "step": 0, "denominator": 4.0}
    assert collate(samples, **settings).right_padded
    assert not ragged_batch().right_padded  # padded on either side, for all that from_labels knows


def test_a_model_that_took_packed_batches_still_takes_padded_ones():
    model, batch = lora_model("gemma2"), ragged_batch()
    own = model.config._attn_implementation
    lm = PerturbableLM(model)
    before = lm.losses(batch)[0]
    lm.losses(batch.packed())
    assert model.config._attn_implementation != own
    assert torch.equal(before, lm.losses(batch)[0])
    prompt = torch.tensor([[0, 0, 5, 9], [3, 4, 5, 9]])
    generated = model.generate(input_ids=prompt, attention_mask=(prompt > 0).long(), max_new_tokens=4, do_sample=False)
    lm.remove()
    assert model.config._attn_implementation == own
    expected = model.generate(input_ids=prompt, attention_mask=(prompt > 0).long(), max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, expected)


def test_a_tree_of_a_flash_model_is_served_by_sdpa():
    """No flash kernel knows rows that share runs; its name stands for one that transformers would look for."""
    model = lora_model("llama")
    config = model.get_base_model().config
    config._attn_implementation_internal = "flash_attention_2"
    attention = SegmentAttention(model, trees=True)
    assert config._attn_implementation == "sdpa_by_segment" and not attention.varlen


def test_flash_attention_is_told_where_the_samples_lie(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the GPU's kernel that obeys transformers' variable-length arguments and nothing else."""
    calls = []

    def varlen(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any):
        assert mask is None and torch.equal(given["cu_seq_lens_q"], given["cu_seq_lens_k"])
        ends = given["cu_seq_lens_q"].tolist()
        assert given["max_length_q"] == given["max_length_k"] == max(b - a for a, b in pairwise(ends))
        calls.append(ends)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = [
            F.scaled_dot_product_attention(*(t[:, :, a:b] for t in (query, key, value)), is_causal=True)
            for a, b in pairwise(ends)
        ]
        return torch.cat(out, 2).transpose(1, 2), None

    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(functions._global_mapping, "flash_attention_2", varlen)
    method = METHODS["anit-frobenius-joined-attack"]
    padded, _ = outcome(method, ragged_batch(), lora_model())
    model = lora_model()
    model.get_base_model().config._attn_implementation_internal = "flash_attention_2"
    packed, _ = outcome(method, ragged_batch().packed(), model)
    assert largest_difference(padded, packed) <= 1e-5
    assert calls[0] == [0, 13, 14, 23, 40] and calls[-1][-1] == 80


@pytest.mark.parametrize(
    "model",
    [
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=1, state_size=4)
        ),
        lambda: tiny_model("llama4_text", intermediate_size_mlp=64, num_local_experts=1, attention_chunk_size=8),
    ],
    ids=["recurrent", "chunked"],
)
def test_a_model_whose_samples_would_mix_is_refused(model: Any):
    with pytest.raises(InputError, match=r"use train\.padding_free=false"):
        PerturbableLM(model()).losses(ragged_batch().packed())


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_joined_batches_come_apart_again(packed: bool):
    whole = ragged_batch()
    narrow = Batch.from_labels(whole.input_ids[:1, :13], whole.attended[:1, :13], torch.full((1, 13), -100))
    batches = [b.packed() if packed else b for b in (whole, narrow, whole)]
    joined = join(batches)
    assert joined.size == 9 and joined.attended.sum() == 2 * sum(LENGTHS) + 13
    values = [torch.randn(*b.input_ids.shape, 3) for b in batches]
    apart = split_tokens(join_tokens(values, batches), batches)
    assert all(torch.equal(a, b) for a, b in zip(values, apart, strict=True))
    lm = PerturbableLM(lora_model())
    alone = torch.cat([loss for b in batches for loss in lm.losses(b)])
    together = torch.cat(lm.losses_of([(b, None) for b in batches]))
    assert torch.allclose(alone, together, atol=1e-5)
