"""Losses of answers, scores of labels and the calibration error, beside plain passes and numpy."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.labels import expected_calibration_error
from anit_ds.evaluation.questions import Question

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 24},
    "gemma3_text": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
}
EOS = 1


def scores_of(model: Any, tokenizer: Any, prompts: list[Any], answers: list[Any], **how: Any) -> Tensor:
    """The log-probabilities [N, answers of a prompt] of answers given to each prompt."""
    asked = [Question(prompt, given) for prompt, given in zip(prompts, answers, strict=True)]
    return torch.tensor([r.log_probabilities for r in ask(model, tokenizer, asked, max_new_tokens=0, **how)])


def prompts_and_answers(number: int) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(number)
    common = [rng.randrange(2, 512) for _ in range(50)]
    prompts = [common + [rng.randrange(2, 512) for _ in range(rng.randrange(1, 30))] for _ in range(number)]
    return prompts, [[rng.randrange(2, 512) for _ in range(rng.randrange(0, 25))] + [EOS] for _ in range(number)]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_plain_passes(
    family: str, make_model: Callable[..., Any], tokenizer: Any, log_probability: Callable[..., float]
):
    model = make_model(family, **FAMILIES[family])
    prompts, answers = prompts_and_answers(19)
    expected = [log_probability(model, p, a) for p, a in zip(prompts, answers, strict=True)]
    for batch_size in (1, 3, 16):
        scores = scores_of(model, tokenizer, prompts, [[answer] for answer in answers], batch_size=batch_size)
        assert scores[:, 0].tolist() == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_labels_are_those_of_plain_passes(
    family: str, make_model: Callable[..., Any], tokenizer: Any, log_probability: Callable[..., float]
):
    model = make_model(family, **FAMILIES[family])
    prompts, _ = prompts_and_answers(11)
    labels = [[7, EOS], [7, 8, EOS], [9, 10, 11, EOS], [12, EOS], [13, 14, EOS], [15, EOS]]
    scores = scores_of(model, tokenizer, prompts, [labels] * 11, batch_size=3)
    expected = torch.tensor([[log_probability(model, p, label) for label in labels] for p in prompts])
    assert scores.shape == (11, 6) and torch.allclose(scores, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("along", [True, False], ids=["with the prompts", "behind the prompts"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_many_labels_take_few_passes_and_have_the_probabilities_of_plain_ones(
    family: str, along: bool, make_model: Callable[..., Any], tokenizer: Any, log_probability: Callable[..., float]
):
    model, rng = make_model(family), random.Random(0)
    prompts, _ = prompts_and_answers(4)
    # Of seven first words and seven second ones, some with a third; one label begins another.
    words = [[20 + a, 40 + b] + [60 + a] * ((a + b) % 3 == 0) + [EOS] for a in range(7) for b in range(7)]
    labels = [[20, EOS], *rng.sample(words, 10 if along else 49)]
    passed = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: passed.append(args[0].numel()))
    scores = scores_of(model, tokenizer, prompts, [labels] * 4, batch_size=2)
    # 2 batches and the prefix; behind the prompts a row's labels are two rows, for which there is room for one a pass.
    assert len(passed) <= (3 if along else 3 + 8)
    expected = torch.tensor([[log_probability(model, p, label) for label in labels] for p in prompts])
    assert torch.allclose(scores.softmax(1), expected.softmax(1), atol=1e-5, rtol=0)
    assert torch.allclose(scores, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("lengths", ["equal", "unequal"])
def test_answers_stay_what_they_are_beside_scores(
    lengths: str, batch_size: int, make_model: Callable[..., Any], tokenizer: Any
):
    model = make_model()
    prompts, answers = prompts_and_answers(19)
    if lengths == "equal":
        prompts = [prompt[:51] for prompt in prompts]
    how = {"max_new_tokens": 12, "batch_size": batch_size}
    alone = ask(model, tokenizer, [Question(prompt) for prompt in prompts], **how)
    both = ask(model, tokenizer, [Question(p, [a, [3, 1]]) for p, a in zip(prompts, answers, strict=True)], **how)
    assert [reply.tokens for reply in both] == [reply.tokens for reply in alone]
    scores = scores_of(model, tokenizer, prompts, [[answer] for answer in answers])[:, 0]
    assert [reply.log_probabilities[0] for reply in both] == pytest.approx(scores.tolist(), rel=1e-4)


def test_nothing_is_asked_without_questions(make_model: Callable[..., Any], tokenizer: Any):
    assert ask(make_model(), tokenizer, [], max_new_tokens=3) == []


def test_calibration_error_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 4)) * 2 - 5
    gold = np.where(rng.random(500) < 0.6, scores.argmax(1), rng.integers(0, 4, 500))
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == gold
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = expected_calibration_error(torch.tensor(scores), torch.tensor(gold))
    assert found == pytest.approx(expected, abs=1e-12) and 0.02 < found < 0.5
    assert expected_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 0.0
    certain = torch.tensor([[0.0, -1e4]] * 4)
    assert expected_calibration_error(certain, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
