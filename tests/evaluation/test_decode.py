"""Answers from kept keys and values are those of `model.generate`, token for token."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from matrix import rows

from anit_ds.errors import RunFailed
from anit_ds.evaluation import plain
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.questions import Question, base_of, texts_of
from anit_ds.tiny import tiny_model

MODELS = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 24},
    "gemma3_text": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
}


def random_tokens(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(2, 512) for _ in range(length)]


def some_prompts(kind: str) -> list[list[int]]:
    rng = random.Random(kind)
    common = random_tokens(rng, 50)
    if kind == "no prefix":
        return [random_tokens(rng, rng.randrange(1, 40)) for _ in range(14)]
    if kind == "equal to the prefix":  # or a few tokens more
        return [common + random_tokens(rng, max(0, i - 6)) for i in range(12)]
    if kind == "one prompt":
        return [common]
    if kind == "no prompt":
        return []
    if kind == "several instructions":  # behind a common beginning; some prompts have one of their own
        instructions = [random_tokens(rng, 60) for _ in range(3)]
        shared = [common + rng.choice(instructions) + random_tokens(rng, rng.randrange(1, 9)) for _ in range(30)]
        return [*shared, *(common + random_tokens(rng, rng.randrange(1, 90)) for _ in range(4)), random_tokens(rng, 70)]
    assert kind == "one prefix"
    return [common + random_tokens(rng, rng.randrange(1, 40)) for _ in range(37)]


KINDS = ["one prefix", "no prefix", "equal to the prefix", "one prompt", "no prompt", "several instructions"]


EVERY = [(family, kind) for family in MODELS for kind in KINDS]


@pytest.mark.parametrize(
    ("family", "kind"), rows(EVERY, quick=[of for of in EVERY if of[0] == "llama" or of[1] == "several instructions"])
)
def test_answers_are_those_of_generate(
    family: str, kind: str, make_model: Callable[..., Any], tokenizer: Any, generated: Callable[..., list[list[int]]]
):
    model, prompts = make_model(family, **MODELS[family]), some_prompts(kind)[-18:]
    expected = generated(model, prompts, 12)
    if len(prompts) > 12:
        assert len({len(answer) for answer in expected}) > 3, "all answers are of one length"
    model.train()
    for batch_size in (1, 3, 16):
        replies = ask(model, tokenizer, [Question(p) for p in prompts], max_new_tokens=12, batch_size=batch_size)
        assert [reply.tokens for reply in replies] == expected
    assert model.training


@pytest.mark.parametrize("kind", ["one prefix", "several instructions"])
def test_what_prompts_share_runs_once(kind: str, make_model: Callable[..., Any], tokenizer: Any):
    model, prompts = make_model(), some_prompts(kind)
    passed = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: passed.append(args[0].numel()))
    ask(model, tokenizer, [Question(prompt) for prompt in prompts], max_new_tokens=1, batch_size=4)
    assert sum(passed) < 0.4 * sum(map(len, prompts))


def test_a_batch_is_kept_full(make_model: Callable[..., Any], tokenizer: Any):
    model, prompts = make_model(), some_prompts("one prefix")
    passed = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: passed.append(args[0].shape))
    replies = ask(model, tokenizer, [Question(prompt) for prompt in prompts], max_new_tokens=40, batch_size=10)
    steps = [rows for rows, columns in passed if columns == 1]
    assert max(rows for rows, _ in passed) <= 10
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    batches = [[replies[i] for i in by_length[first : first + 10]] for first in range(0, len(prompts), 10)]
    # Until the last of every batch has finished:
    assert len(steps) < 0.8 * sum(max(len(reply.tokens) - 1 for reply in batch) for batch in batches)


def test_a_repetition_penalty_of_the_checkpoint_holds(
    make_model: Callable[..., Any], tokenizer: Any, generated: Callable[..., list[list[int]]]
):
    model, prompts = make_model(), some_prompts("one prefix")[:8]
    without = generated(model, prompts, 20)
    model.generation_config.repetition_penalty = 1.4
    expected = generated(model, prompts, 20)
    assert expected != without
    replies = ask(model, tokenizer, [Question(prompt) for prompt in prompts], max_new_tokens=20)
    assert [reply.tokens for reply in replies] == expected


def test_no_gradient_is_kept_of_a_model_that_is_being_trained(make_model: Callable[..., Any], tokenizer: Any):
    model, kept = make_model().requires_grad_(True), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: kept.append(out.requires_grad))
    ask(model, tokenizer, [Question(prompt, [[5, 1]]) for prompt in some_prompts("one prefix")], max_new_tokens=3)
    assert kept and not any(kept)


def test_words_and_their_order(make_model: Callable[..., Any], tokenizer: Any, generated: Callable[..., Any]):
    model, prompts = make_model(), some_prompts("no prefix")
    expected = [tokenizer.decode(a, skip_special_tokens=True).strip() for a in generated(model, prompts, 9)]
    beats = []
    replies = ask(
        model, tokenizer, [Question(prompt) for prompt in prompts], max_new_tokens=9, batch_size=5,
        heartbeat=lambda: beats.append(1),
    )  # fmt: skip
    assert texts_of(replies, tokenizer) == expected
    assert len(beats) >= 5


@pytest.mark.parametrize("why", ["state", "positions", "setting"])
def test_other_models_are_asked_with_generate(
    why: str,
    make_model: Callable[..., Any],
    tokenizer: Any,
    generated: Callable[..., Any],
    log_probability: Callable[..., float],
    caplog: pytest.LogCaptureFixture,
):
    prompts = some_prompts("one prefix")[:5]
    if why == "state":
        config = transformers.MambaConfig(
            vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1, pad_token_id=0
        )
        model: Any = transformers.MambaForCausalLM(config).requires_grad_(False)
    elif why == "positions":
        model = tiny_model("roberta", is_decoder=True).requires_grad_(False)
    else:
        model = make_model()
        model.generation_config.no_repeat_ngram_size = 2
    caplog.set_level(logging.INFO, logger="anit_ds")
    answers = [[5, 6, 1], [7, 1]]
    for _ in range(2):
        replies = ask(
            model, tokenizer, [Question(prompt, answers) for prompt in prompts], max_new_tokens=6, batch_size=1
        )
    assert [reply.tokens for reply in replies] == generated(model, prompts, 6)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.log_probabilities == pytest.approx([log_probability(model, prompt, a) for a in answers], abs=1e-4)
    assert [
        record.message.startswith("answers come from model.generate")
        for record in caplog.records
        if record.name == "anit_ds.evaluation.decode"
    ] == [True]


def test_the_plain_way_is_generate_too(
    make_model: Callable[..., Any], tokenizer: Any, generated: Callable[..., list[list[int]]]
):
    model, prompts = make_model("gemma2", sliding_window=24), some_prompts("several instructions")[-18:]
    expected = generated(model, prompts, 12)
    for batch_size in (1, 4, 16):
        replies = plain.ask(model, tokenizer, [Question(p) for p in prompts], max_new_tokens=12, batch_size=batch_size)
        assert [reply.tokens for reply in replies] == expected


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_the_name_that_the_model_gives_it(
    name: str, make_model: Callable[..., Any], tokenizer: Any, generated: Callable[..., list[list[int]]]
):
    """transformers 5.24 calls it `cache`, and drops the earlier name with 5.40; earlier ones drop `cache`."""
    model, prompts = make_model(), some_prompts("one prefix")[-6:]
    expected, base = generated(model, prompts, 6), base_of(model)
    own = base.forward
    theirs = "cache" if "cache" in inspect.signature(own).parameters else "past_key_values"

    def by_cache(input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        return own(input_ids, attention_mask, position_ids, use_cache=use_cache, **{theirs: cache})

    def by_past(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        return own(input_ids, attention_mask, position_ids, use_cache=use_cache, **{theirs: past_key_values})

    base.forward = by_cache if name == "cache" else by_past
    replies = ask(model, tokenizer, [Question(p) for p in prompts], max_new_tokens=6, batch_size=4)
    assert [reply.tokens for reply in replies] == expected


def test_a_model_that_drops_its_cache_is_an_error(make_model: Callable[..., Any], tokenizer: Any):
    model = make_model()
    own = base_of(model).forward

    def forgetful(input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        return own(input_ids, attention_mask, position_ids)

    base_of(model).forward = forgetful
    with pytest.raises(RunFailed, match="does not keep plain keys and values"):
        ask(model, tokenizer, [Question(p) for p in some_prompts("one prefix")[-6:]], max_new_tokens=6)


def test_half_precision_says_what_is_best_but_for_rounding(make_model: Callable[..., Any], tokenizer: Any):
    """By the same weights in float32 no token is worse than the best by more than rounding."""
    model, prompts = make_model().to(torch.bfloat16), some_prompts("one prefix")[-18:]
    replies = ask(model, tokenizer, [Question(p) for p in prompts], max_new_tokens=12)
    assert sum(len(reply.tokens) for reply in replies) > 5 * len(prompts)
    model.float().eval()
    for prompt, reply in zip(prompts, replies, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + reply.tokens])).logits[0, len(prompt) - 1 : -1]
        said = logits.gather(1, torch.tensor(reply.tokens)[:, None])[:, 0]
        assert ((logits.max(1).values - said) / logits.std(1)).max() < 0.05
