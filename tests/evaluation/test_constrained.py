"""Constrained answers of a small random model, beside a search over the whole vocabulary at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from anit_ds.data.tasks import TASKS
from anit_ds.data.tasks.grammar import Grammar, grammar_for
from anit_ds.evaluation.asking import Question, texts_of
from anit_ds.evaluation.constrained import item_scores
from anit_ds.evaluation.decode import ask

WORDS = {"PER": "person", "LOC": "place"}
TEXTS = ["Ada lives in Bern", "Bo; Cy and Ada", "nothing here", "日本 é"]


def searched(
    model: Any, tokenizer: Any, prompt: list[int], grammar: Grammar, most: int
) -> tuple[list[int], list[float]]:
    """Greedy over the valid tokens, the model read anew for each."""
    tokens, scores = [], []
    while len(tokens) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
        said = tokenizer.decode(tokens)
        for token in logits.argsort(descending=True).tolist():
            if token == tokenizer.eos_token_id:
                valid = grammar.is_whole(said)
            else:
                now = tokenizer.decode([*tokens, token], skip_special_tokens=True)
                whole, partial = now.rstrip("\ufffd"), now.endswith("\ufffd")
                ends = ("日", "本", "é") if partial else ("",)  # of TEXTS: what a byte may be the beginning of
                valid = len(now) > len(said) and any(grammar.begins(whole + end) for end in ends)
                valid &= len(now) - len(whole) <= 3
            if valid:
                break
        else:
            token = tokenizer.eos_token_id  # bytes that are no character: what is whole so far is the answer
        tokens.append(token)
        scores.append(float(logits.log_softmax(0)[token]))
        if token == tokenizer.eos_token_id:
            break
    return tokens, scores


@pytest.mark.parametrize("task", ["ner", "relation", "multilabel"])
def test_the_most_probable_valid_token_at_every_step(task: str, make_model: Callable[..., Any], tokenizer: Any):
    model = make_model()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.get_base_model().generation_config.eos_token_id = tokenizer.eos_token_id
    prompts = [tokenizer(f"Text: {text}\nAnswer:")["input_ids"] for text in TEXTS]
    grammars = [grammar_for(TASKS[task], text, WORDS) for text in TEXTS]
    asked = [Question(prompt, (), grammar) for prompt, grammar in zip(prompts, grammars, strict=True)]
    replies = ask(model, tokenizer, [*asked, Question(prompts[0])], max_new_tokens=40, one_line=True, batch_size=3)
    for reply, prompt, grammar in zip(replies, prompts, grammars, strict=False):
        tokens, scores = searched(model.eval(), tokenizer, prompt, grammar, 40)
        assert reply.tokens == tokens and reply.token_scores == pytest.approx(scores, abs=1e-3)
    answers = [g.whole_part(a) for g, a in zip(grammars, texts_of(replies[:-1], tokenizer), strict=True)]
    assert all(TASKS[task].parse(answer, WORDS).malformed == 0 for answer in answers)
    free = ask(model, tokenizer, [Question(prompts[0])], max_new_tokens=40, one_line=True)[0]
    assert replies[-1].tokens == free.tokens and not free.token_scores, "others are as free as ever"


def test_an_item_s_score_is_the_mean_of_its_tokens(tokenizer: Any):
    from anit_ds.evaluation.asking import Reply

    first, second = tokenizer(" person: Ada;")["input_ids"], tokenizer(" place: Bern")["input_ids"]
    reply = Reply(tokens=[*first, *second, tokenizer.eos_token_id])
    reply.token_scores = [math.log(0.5)] * len(first) + [math.log(0.25)] * (len(second) + 1)
    assert item_scores(reply, tokenizer) == pytest.approx([0.5, 0.25])
