"""The shared prefix against whole sequences: the same gradients, for every method, family and shape of batch."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM, SharedPrefixLM, build_method
from anit_ds.adversarial.rules import METHODS as RULES
from anit_ds.adversarial.shared_prefix import split_at_scope
from anit_ds.config import MethodConfig
from anit_ds.errors import InputError
from anit_ds.tiny import FAMILIES, tiny_model

SETTINGS = {"eps": 0.7, "alpha": 0.3, "lambda": 0.6, "steps": 3, "init_norm": 0.5, "eps_unit": "absolute"}
METHODS: dict[str, dict[str, object]] = {
    name: {"name": name, **{k: v for k, v in SETTINGS.items() if k.replace("lambda", "lambda_") in rules.reads}}
    for name, rules in RULES.items()
    if name != "neftune"  # which perturbs the context
} | {
    "anit-clean": {"name": "anit", "gradient": "clean", "alpha": 0.3, "eps": 0.7},
    "anit-separate": {"name": "anit", "passes": "separate", "alpha": 0.3, "eps": 0.7},
}
# (context, instruction, answer) tokens of each row; the first has no context, the second one token of it, the last
# is a rank's filler: one token, nothing to attack and nothing to learn.
RAGGED = ((0, 4, 2), (1, 3, 3), (9, 5, 2), (14, 2, 4), (1, 0, 0))
NO_CONTEXT = ((0, 4, 2), (0, 6, 3))


def lora_model(family: str = "llama", dropout: float = 0.0, **changes: object) -> nn.Module:
    torch.manual_seed(1)
    model = tiny_model(family, **changes).requires_grad_(False)
    settings = {"r": 4, "target_modules": "all-linear", "lora_dropout": dropout, "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**settings), autocast_adapter_dtype=False).train()


def batch_of(rows: tuple[tuple[int, int, int], ...], *, left: bool = False, extra: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(3)
    width = max(map(sum, rows)) + extra
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    attended, scope = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for row, (context, instruction, answer) in enumerate(rows):
        length = context + instruction + answer
        start = width - length if left else 0
        ids[row, start : start + length] = torch.randint(2, 250, (length,), generator=rng)
        attended[row, start : start + length] = True
        # One token of the prompt follows the instruction, as "Answer:" does.
        scope[row, start + context : start + context + max(0, instruction - 1)] = True
        first = start + context + instruction
        labels[row, first : start + length] = ids[row, first : start + length]
    keys = torch.tensor([7, 2**40, 11, 5, -3])[: len(rows)]
    return Batch.from_labels(ids, attended, labels, scope=scope, sample_ids=keys, beta=0.3, step=9)


def step(kind: type[PerturbableLM], model: nn.Module, settings: dict, batch: Batch) -> tuple[dict, dict]:
    """(LoRA gradients, statistics) of one step of a method."""
    lm = kind(model)
    stats = build_method(MethodConfig(**settings), seed=1, scale=1.0).backward(lm, batch)
    lm.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients, {k: (v[0] / v[1]).item() for k, v in stats.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and max(g.abs().max().item() for g in a.values()) > 1e-2
    return max((a[k] - b[k]).abs().max().item() for k in a)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_are_those_of_whole_sequences(family: str, method: str):
    model, batch = lora_model(family), batch_of(RAGGED)
    whole, whole_stats = step(PerturbableLM, model, METHODS[method], batch)
    shared, shared_stats = step(SharedPrefixLM, model, METHODS[method], batch)
    off = largest_difference(whole, shared)
    print(f"{family} {method}: max gradient difference {off:.1e}")
    assert off <= 1e-5
    # g on the context is not computed; it never was in scope.
    assert shared_stats == pytest.approx(whole_stats, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "batch",
    [batch_of(RAGGED, left=True), batch_of(RAGGED, extra=5), batch_of(NO_CONTEXT), batch_of(RAGGED[2:3])],
    ids=["left-padded", "more-padding", "no-context", "one-row"],
)
def test_any_shape_of_batch_will_do(batch: Batch, attention: str):
    model = lora_model(attn_implementation=attention)
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    shared, _ = step(SharedPrefixLM, model, METHODS["anit"], batch)
    assert largest_difference(whole, shared) <= 1e-5
    padded, _ = step(SharedPrefixLM, model, METHODS["anit"], split_at_scope(batch, pad_to_multiple_of=8))
    assert largest_difference(whole, padded) <= 1e-5


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_window_that_slides_over_the_cut_sees_the_same_tokens(family: str):
    model, batch = lora_model(family, sliding_window=4), batch_of(RAGGED)
    wide, _ = step(PerturbableLM, lora_model(family, sliding_window=64), METHODS["anit"], batch)
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    shared, _ = step(SharedPrefixLM, model, METHODS["anit"], batch)
    assert largest_difference(whole, shared) <= 1e-5
    assert largest_difference(whole, wide) > 1e-3, "the window must be narrow enough to matter"


def test_the_random_start_is_the_same_to_the_bit():
    batch, seen = batch_of(RAGGED), {}
    for kind in (PerturbableLM, SharedPrefixLM):
        lm = kind(lora_model())
        method = build_method(MethodConfig(**METHODS["anit"]), seed=1, scale=1.0)
        _, seen[kind], _ = lm.input_gradient(batch, lambda e, m=method: m._start(e, batch))
    assert torch.equal(seen[PerturbableLM], seen[SharedPrefixLM])


def test_the_context_runs_once_whatever_the_method():
    """Tokens that pass through the first block, forward: context once, then suffixes only."""
    batch = split_at_scope(batch_of(RAGGED))
    context, suffix = batch.context_index.numel(), batch.suffix_index.numel()
    for method, suffixes in {"sft": 1, "anit": 3, "anit-separate": 3, "pgd": 4, "freelb": 3, "fgsm": 2}.items():
        model, tokens = lora_model(), []
        block = model.get_base_model().model.layers[0].mlp
        block.register_forward_pre_hook(lambda m, args, seen=tokens: seen.append(args[0].shape[:-1].numel()))
        step(SharedPrefixLM, model, METHODS[method], batch)
        assert sum(tokens) == context + suffixes * suffix, method


def test_with_dropout_the_attack_is_that_of_a_model_without():
    batch = batch_of(RAGGED)
    _, _, expected = PerturbableLM(lora_model(dropout=0.0)).input_gradient(batch)
    model = lora_model(dropout=0.5)
    lm = SharedPrefixLM(model)
    _, _, g = lm.input_gradient(batch)
    inside = batch.scope.unsqueeze(-1)
    assert (g - expected).mul(inside).abs().max().item() <= 1e-5
    (one,) = lm.losses(batch)
    lm.backward(one.sum())
    (two,) = lm.losses(batch)
    assert not torch.equal(one[2:4], two[2:4]), "training rows have dropout"
    _, _, again = lm.input_gradient(batch)
    assert torch.equal(g, again), "and the attack has none, also after a training pass"


def test_with_dropout_all_suffixes_of_a_step_share_one_context():
    batch = batch_of(RAGGED)
    lm = SharedPrefixLM(lora_model(dropout=0.5))
    lm.losses(batch)
    first = lm._context
    lm.input_gradient(batch)
    losses = lm.losses(batch, (None, lm.embeddings(batch)))
    assert lm._context is first
    lm.backward(sum(part.sum() for part in losses))
    assert lm._context is None


def test_a_look_at_the_loss_leaves_nothing_behind():
    model, batch = lora_model(), batch_of(RAGGED)
    expected, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    lm = SharedPrefixLM(model)
    with torch.no_grad():
        (before,) = lm.losses(batch)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
        (after,) = lm.losses(batch)
        assert not torch.equal(before, after)
        for p in model.parameters():
            if p.requires_grad:
                p.sub_(0.1)
    build_method(MethodConfig(**METHODS["anit"]), seed=1, scale=1.0).backward(lm, batch)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert largest_difference(expected, got) <= 1e-5


def test_adapters_behind_the_first_keys_have_nothing_to_hand_back():
    """LoRA on the last block's output only: no key or value of the context is trained."""
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": r".*layers\.1\.mlp\.down_proj", "init_lora_weights": False}
    model = peft.get_peft_model(tiny_model().requires_grad_(False), peft.LoraConfig(**settings))
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch_of(RAGGED))
    shared, _ = step(SharedPrefixLM, model, METHODS["anit"], batch_of(RAGGED))
    assert largest_difference(whole, shared) <= 1e-5


def test_what_a_loss_needs_may_not_stand_before_the_scope():
    batch = batch_of(((3, 4, 2),))
    with pytest.raises(ValueError, match="put the perturbed tokens last"):
        split_at_scope(replace(batch, target_positions=torch.zeros_like(batch.target_positions)))


def test_a_model_with_other_layers_is_refused():
    model = tiny_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="method.schedule: shared_prefix .* llama has linear_attention layers"):
        SharedPrefixLM(model)


def test_activation_checkpointing_is_refused():
    model = lora_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(InputError, match="no activation checkpointing, and llama does not keep plain keys and values"):
        step(SharedPrefixLM, model, METHODS["anit"], batch_of(RAGGED))
