"""The prefix tree against whole sequences: the same gradients, for every method, family and shape of batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matrix import rows
from nrm import FULL_NRM
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM, PrefixTreeLM, build_method
from anit_ds.adversarial.merged_attention import merged_attention
from anit_ds.adversarial.rules import METHODS as RULES
from anit_ds.adversarial.tree import SHORTEST_SHARED, TreeBatch, grow, lay_together
from anit_ds.config import MethodConfig
from anit_ds.errors import InputError
from anit_ds.tiny import FAMILIES, tiny_model

SETTINGS = {"eps": 0.7, "alpha": 0.3, "lambda": 0.6, "steps": 3, "init_norm": 0.5, "eps_unit": "absolute"}
LOUD_NRM = {**FULL_NRM, "eps": 0.7, "alpha": 0.3}
METHODS: dict[str, dict[str, object]] = {
    name: {"name": name, **{k: v for k, v in SETTINGS.items() if k.replace("lambda", "lambda_") in rules.reads}}
    for name, rules in RULES.items()
} | {
    "anit": {**LOUD_NRM, "eps_unit": "absolute", "lambda": 0.6},
    "anit-clean": {**LOUD_NRM, "gradient": "clean"},
    "anit-separate": {**LOUD_NRM, "passes": "separate"},
    "anit-sign": {**LOUD_NRM, "step": "sign", "alpha": 0.05},
    "anit-consistency": {**LOUD_NRM, "loss": "consistency"},
    "anit-alternating": {**LOUD_NRM, "gradient": "clean", "updates": "alternating"},
    "anit-start": {**LOUD_NRM, "start": 0.2},
}
# (context, instruction, answer) tokens of each row; the first has no context, the second one token of it, the last
# is a rank's filler: one token, nothing to attack and nothing to learn.
RAGGED = ((0, 4, 2), (1, 3, 3), (9, 5, 2), (14, 2, 4), (1, 0, 0))
NO_CONTEXT = ((0, 4, 2), (0, 6, 3))
# Contexts that begin alike: all with 10 tokens, and two of them with 9 more.
ALIKE = ((22, 4, 2), (16, 3, 3), (25, 5, 2), (10, 2, 4))


def lora_model(family: str = "llama", dropout: float = 0.0, **changes: object) -> nn.Module:
    torch.manual_seed(1)
    model = tiny_model(family, **changes).requires_grad_(False)
    settings = {"r": 4, "target_modules": "all-linear", "lora_dropout": dropout, "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**settings), autocast_adapter_dtype=False).train()


def batch_of(
    rows: tuple[tuple[int, int, int], ...], *, left: bool = False, extra: int = 0, whole_prompt: bool = False
) -> Batch:
    """`whole_prompt`: the scope is the prompt and not the instruction alone."""
    rng = torch.Generator().manual_seed(3)
    width = max(map(sum, rows)) + extra
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    attended, scope = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for row, (context, instruction, answer) in enumerate(rows):
        length = context + instruction + answer
        start = width - length if left else 0
        ids[row, start : start + length] = torch.randint(2, 250, (length,), generator=rng)
        if rows == ALIKE:
            shared = 19 if context > 20 else 10
            ids[row, start : start + shared] = torch.arange(40, 40 + shared)
        attended[row, start : start + length] = True
        # One token of the prompt follows the instruction, as "Answer:" does.
        opens = start if whole_prompt else start + context
        scope[row, opens : start + context + max(0, instruction - 1)] = True
        first = start + context + instruction
        labels[row, first : start + length] = ids[row, first : start + length]
    keys = torch.tensor([7, 2**40, 11, 5, -3])[: len(rows)]
    return Batch.from_labels(ids, attended, labels, scope=scope, sample_ids=keys, beta=0.3, step=9)


def step(kind: type[PerturbableLM], model: nn.Module, settings: dict, batch: Batch) -> tuple[dict, dict]:
    """(LoRA gradients, statistics) of one step of a method, or of alternating updates of both."""
    lm, config = kind(model), MethodConfig(**settings)
    method = build_method(config, seed=1, scale=1.0)
    for number in (batch.step - 1, batch.step) if config.alternates else (batch.step,):
        stats = method.backward(lm, lm.prepare(replace(batch, step=number)))
    lm.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients, {k: (v[0] / v[1]).item() for k, v in stats.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative to the largest gradient."""
    largest = max(g.abs().max().item() for g in a.values())
    assert a.keys() == b.keys() and largest > 1e-2
    return max((a[k] - b[k]).abs().max().item() for k in a) / max(1.0, largest)


def some_not_attacked() -> Batch:
    """Rows 0 and 2 have no token in scope, as samples in which nothing is to be found."""
    batch = batch_of(ALIKE)
    return replace(batch, scope=batch.scope & torch.tensor([False, True, False, True])[:, None])


UNATTACKED = {"some not attacked": some_not_attacked()}
BATCHES = {
    "alike": batch_of(ALIKE),
    **UNATTACKED,
    "alike, whole prompt": batch_of(ALIKE, whole_prompt=True),
    "ragged": batch_of(RAGGED),
    "left-padded": batch_of(RAGGED, left=True),
    "more padding": batch_of(RAGGED, extra=5),
    "no context": batch_of(NO_CONTEXT),
    "one row": batch_of(RAGGED[2:3]),
    "packed": batch_of(ALIKE).packed(),
}


@pytest.mark.parametrize(
    ("method", "family"),
    rows(
        product(METHODS, FAMILIES),
        quick=[*((method, "llama") for method in METHODS), *product(["sft", "anit"], FAMILIES)],
    ),
)
def test_the_gradients_are_those_of_whole_sequences(family: str, method: str):
    model = lora_model(family)
    # NEFTune perturbs every token, so nothing before the scope may be a trunk.
    names = ("alike, whole prompt",) if method == "neftune" else ("alike", "alike, whole prompt", "ragged", *UNATTACKED)
    for name in names:
        whole, whole_stats = step(PerturbableLM, model, METHODS[method], BATCHES[name])
        tree, tree_stats = step(PrefixTreeLM, model, METHODS[method], BATCHES[name])
        off = largest_difference(whole, tree)
        print(f"{family} {method} {name}: max gradient difference {off:.1e}")
        assert off <= (3e-5 if method == "pgd" else 1e-5)  # three ascent steps multiply rounding
        # g on the trunk is not computed; it never was in scope.
        assert tree_stats == pytest.approx(whole_stats, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "attention"),
    rows(
        product(BATCHES, ["sdpa", "eager"]),
        quick=[*((name, "sdpa") for name in BATCHES), ("ragged", "eager"), ("packed", "eager")],
    ),
)
def test_any_shape_of_batch_will_do(name: str, attention: str):
    model, batch = lora_model(attn_implementation=attention), BATCHES[name]
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    tree, _ = step(PrefixTreeLM, model, METHODS["anit"], batch)
    assert largest_difference(whole, tree) <= 1e-5
    # Ranks that must agree: with or without something to keep, all keep a trunk, or none does.
    for keeps_trunk in (True, False):
        lm = PrefixTreeLM(model, keeps_trunk=keeps_trunk)
        build_method(MethodConfig(**METHODS["anit"]), seed=1, scale=1.0).backward(lm, lm.prepare(batch))
        lm.remove()
        agreed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        assert largest_difference(whole, agreed) <= 1e-5


def test_a_model_with_a_flash_kernel_has_its_tree_on_sdpa():
    """No flash kernel knows rows that share runs. (The kernel is not here: its name is all that is set.)"""
    model, batch = lora_model(), BATCHES["alike"]
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    model.get_base_model().config._attn_implementation_internal = "flash_attention_2"
    lm = PrefixTreeLM(model)
    build_method(MethodConfig(**METHODS["anit"]), seed=1, scale=1.0).backward(lm, lm.prepare(batch))
    tree = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert largest_difference(whole, tree) <= 1e-5


@pytest.mark.parametrize("method", ["sft", "anit", "anit-clean"])
def test_activation_checkpointing_changes_nothing(method: str):
    whole, _ = step(PerturbableLM, lora_model(), METHODS[method], BATCHES["alike"])
    model = lora_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tree, _ = step(PrefixTreeLM, model, METHODS[method], BATCHES["alike"])
    assert largest_difference(whole, tree) <= 1e-5


def test_a_trunk_without_its_graph_is_refused():
    model = lora_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(InputError, match="use_reentrant"):
        step(PrefixTreeLM, model, METHODS["sft"], BATCHES["alike"])


def test_one_masked_product_sees_what_the_merged_blocks_see():
    """The path of a device that is no CPU, taken here through its mask."""
    tree = TreeBatch.of(BATCHES["alike"])
    for row in (tree.whole, tree.apart, lay_together([tree.whole, tree.apart])):
        layout = row.layout
        q, k, v = (
            torch.randn(1, heads, n, 8) for heads, n in ((4, layout.tokens), *[(2, sum(layout.all_lengths))] * 2)
        )
        masked = F.scaled_dot_product_attention(
            q, k, v, attn_mask=layout.visible(None, q.device), scale=0.3, enable_gqa=True
        )
        assert torch.allclose(merged_attention(q, k, v, layout, 0.3), masked.transpose(1, 2), atol=1e-6)
        narrow = layout.visible(3, q.device)
        assert (
            torch.equal(narrow.sum(1), (row.positions + 1).clamp(max=3))
            and (narrow <= layout.visible(None, q.device)).all()
        )


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_window_that_slides_over_the_cut_sees_the_same_tokens(family: str):
    model, batch = lora_model(family, sliding_window=4), BATCHES["alike"]
    wide, _ = step(PerturbableLM, lora_model(family, sliding_window=64), METHODS["anit"], batch)
    whole, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    shared, _ = step(PrefixTreeLM, model, METHODS["anit"], batch)
    assert largest_difference(whole, shared) <= 1e-5
    assert largest_difference(whole, wide) > 1e-3, "the window must be narrow enough to matter"


def test_the_random_start_is_the_same_to_the_bit():
    batch, seen = BATCHES["alike"], {}
    for kind in (PerturbableLM, PrefixTreeLM):
        lm = kind(lora_model())
        method, prepared = build_method(MethodConfig(**METHODS["anit"]), seed=1, scale=1.0), lm.prepare(batch)
        _, seen[kind], _ = lm.input_gradient(prepared, lambda e, m=method, b=prepared: m._start(e, b))
    inside = batch.scope[batch.attended]  # the trunk, outside the scope, is not looked at again
    assert torch.equal(seen[PerturbableLM][batch.attended][inside], seen[PrefixTreeLM][0][inside])


def test_no_token_runs_twice_whatever_the_method():
    """Tokens that pass through the first block, forward: the trunk once, then what stands behind it only."""
    samples = [sum(row) for row in ALIKE]
    shared, behind = 10 * 3 + 9, sum(i + a for _, i, a in ALIKE)
    trunk = sum(c for c, _, _ in ALIKE) - shared
    for method, passes in {"sft": 1, "anit": 3, "anit-separate": 3, "pgd": 4, "freelb": 3, "fgsm": 2}.items():
        assert tokens_of(method, "alike") == trunk + passes * behind, method
    # The scope is the whole prompt: perturbed samples share nothing, clean ones what they have alike.
    assert tokens_of("sft", "alike, whole prompt") == sum(samples) - shared
    assert tokens_of("anit", "alike, whole prompt") == 3 * sum(samples) - shared


def tokens_of(method: str, name: str) -> int:
    model, tokens = lora_model(), []
    block = model.get_base_model().model.layers[0].mlp
    block.register_forward_pre_hook(lambda m, args: tokens.append(args[0].shape[:-1].numel()))
    step(PrefixTreeLM, model, METHODS[method], BATCHES[name])
    return sum(tokens)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=6),
    st.lists(st.integers(0, 30), min_size=6, max_size=6),
    st.integers(0, 2**32),
)
def test_every_sample_is_the_runs_of_its_chain(ids: list[list[int]], limits: list[int], seed: int):
    """Binary tokens share much. Each sample's chain spells it, and what is shared lies within every sharer's limit."""
    tokens = [np.array(row) for row in ids]
    bounds = [min(limit, len(row) - 1) for limit, row in zip(limits, ids, strict=False)]
    runs, last = grow(tokens, bounds, [len(row) for row in ids])
    users = [0] * len(runs)
    for sample, end in enumerate(last):
        chain = (*runs[end].chain, end)
        spelt = [int(t) for j in chain for t in tokens[runs[j].sample][runs[j].start : runs[j].stop]]
        assert spelt == ids[sample]
        for j in chain:
            users[j] += 1
            assert runs[j].sample == sample or runs[j].stop <= bounds[sample]
    assert all(count >= 1 for count in users)
    assert all(r.stop - r.start >= SHORTEST_SHARED for r, count in zip(runs, users, strict=True) if count > 1)


def test_with_dropout_the_attack_is_that_of_a_model_without():
    batch = batch_of(RAGGED)
    _, _, expected = PerturbableLM(lora_model(dropout=0.0)).input_gradient(batch)
    model = lora_model(dropout=0.5)
    lm = PrefixTreeLM(model)
    tree = lm.prepare(batch)
    _, _, g = lm.input_gradient(tree)
    inside = batch.scope[batch.attended]
    assert (g[0] - expected[batch.attended])[inside].abs().max().item() <= 1e-5
    (one,) = lm.losses(tree)
    lm.backward(one.sum())
    (two,) = lm.losses(tree)
    assert not torch.equal(one[2:4], two[2:4]), "training rows have dropout"
    _, _, again = lm.input_gradient(tree)
    assert torch.equal(g, again), "and the attack has none, also after a training pass"


def test_with_dropout_all_passes_of_a_step_share_one_trunk():
    batch = batch_of(RAGGED)
    lm = PrefixTreeLM(lora_model(dropout=0.5))
    batch = lm.prepare(batch)
    lm.losses(batch)
    first = lm._trunk
    lm.input_gradient(batch)
    losses = lm.losses(batch, (None, lm.module.get_input_embeddings()(batch.input_ids).detach()))
    assert lm._trunk is first and first is not None
    lm.backward(sum(part.sum() for part in losses))
    assert lm._trunk is None


def test_a_look_at_the_loss_leaves_nothing_behind():
    model, batch = lora_model(), batch_of(RAGGED)
    expected, _ = step(PerturbableLM, model, METHODS["anit"], batch)
    lm = PrefixTreeLM(model)
    batch = lm.prepare(batch)
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
    shared, _ = step(PrefixTreeLM, model, METHODS["anit"], batch_of(RAGGED))
    assert largest_difference(whole, shared) <= 1e-5


def test_what_a_loss_needs_may_not_stand_before_the_scope():
    batch = batch_of(((3, 4, 2),))
    with pytest.raises(ValueError, match="put the perturbed tokens last"):
        TreeBatch.of(replace(batch, target_positions=torch.zeros_like(batch.target_positions)))


def test_a_model_with_other_layers_is_refused():
    model = tiny_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="method.schedule: prefix_tree: LlamaForCausalLM has linear_attention layers"):
        PrefixTreeLM(model)
