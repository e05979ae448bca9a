"""Constrained answers of a small random model, beside a search over the whole vocabulary at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from anit_ds.data.tasks import TASKS
from anit_ds.data.tasks.grammar import Grammar, grammar_for
from anit_ds.evaluation.constrained import Bytes, Constraint, item_scores
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.questions import Question, texts_of
from anit_ds.tiny import tiny_tokenizer

WORDS = {"PER": "person", "LOC": "place"}
TEXTS = ["Ada lives in Bern", "Bo; Cy and Ada", "nothing here", "日本 é"]
BYTES = {tiny_tokenizer().convert_tokens_to_ids(piece): byte for byte, piece in bytes_to_unicode().items()}


def could_begin(grammar: Grammar, said: bytes) -> bool:
    """Whether some valid answer's UTF-8 begins with this: whole characters, then a part of one of TEXTS'."""
    for partial in range(min(4, len(said) + 1)):
        whole, rest = said[: len(said) - partial], said[len(said) - partial :]
        try:
            begun = whole.decode()
        except UnicodeDecodeError:
            continue
        return any(
            grammar.begins(begun + end) for end in (TEXTS[-1] if rest else [""]) if end.encode().startswith(rest)
        )
    return False


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
                valid = token in BYTES and could_begin(grammar, bytes(BYTES[t] for t in [*tokens, token]))
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


def byte_fallback_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Gemma's and Llama 2's kind: blanks are ▁, and a character that has no token is written as its bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"None;:personalcEd日"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges=[], byte_fallback=True,
            unk_token="<unk>",
        )
    )  # fmt: skip
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("kind", [tiny_tokenizer, byte_fallback_tokenizer])
@pytest.mark.parametrize("name", ["Erdős", "日本", "José", "O😀", "Ada"])
def test_a_character_of_several_tokens_can_be_said(kind: Callable[[], Any], name: str):
    tokenizer, text = kind(), f"said {name} and Łódź"
    constraint = Constraint(grammar_for(TASKS["ner"], text, WORDS), tokenizer, Bytes(tokenizer), frozenset({0}))
    wanted = tokenizer(f" person: {name}; person: Łódź", add_special_tokens=False)["input_ids"]
    assert max(wanted) < len(tokenizer) and 0 not in wanted
    said: list[int] = []
    for token in wanted:
        logits = torch.zeros(len(tokenizer))
        logits[token] = 1.0
        said.append(constraint.choose(said, logits))
        assert said[-1] == token, f"refused after {tokenizer.decode(said[:-1])!r}"
    # Another character's byte, which would lead nowhere, is passed over for one of the text's.
    begun = tokenizer(" person: ", add_special_tokens=False)["input_ids"]
    first, *_ = tokenizer("Ł", add_special_tokens=False)["input_ids"]
    wrong, *_ = tokenizer("Ж", add_special_tokens=False)["input_ids"]
    logits = torch.zeros(len(tokenizer))
    logits[wrong], logits[first] = 2.0, 1.0
    assert constraint.choose(begun, logits) == first


def test_an_item_s_score_is_the_mean_of_its_tokens(tokenizer: Any):
    from anit_ds.evaluation.questions import Reply

    first, second = tokenizer(" person: Ada;")["input_ids"], tokenizer(" place: Bern")["input_ids"]
    reply = Reply(tokens=[*first, *second, tokenizer.eos_token_id])
    reply.token_scores = [math.log(0.5)] * len(first) + [math.log(0.25)] * (len(second) + 1)
    assert item_scores(reply, tokenizer) == pytest.approx([0.5, 0.25])
