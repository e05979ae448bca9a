"""From samples to tokens: what a model reads for its prompt, its answer and its instruction, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, processors

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.prompts import PromptEncoder
from anit_ds.errors import InputError
from anit_ds.tiny import tiny_tokenizer

SAMPLE = Sample(
    "a/1", "a", "Instruction: a film, été 😀", (("pos",),), "Say if it is good.", "Say if it is good.",
    "Which?", "one label", "good, bad", "good", "none", 0, 0.0,
)  # fmt: skip
PLAIN = (
    "Instruction: Say if it is good.\nQuestion: Which?\nFormat: one label\nOption: good, bad\n"
    "Text: Instruction: a film, été 😀\nAnswer:"
)
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def tokenizer(kind: str) -> Any:
    """The byte tokenizer as families of models have it: with BOS, with an EOS it adds by itself, with pad = EOS."""
    made = tiny_tokenizer()
    if kind == "pad-is-eos":
        made.pad_token = made.eos_token
    if kind in ("bos", "bos-and-eos"):
        made.add_special_tokens({"bos_token": AddedToken("<bos>", special=True)})
        ends = [("<bos>", made.bos_token_id), ("<eos>", made.eos_token_id)]
        template = "<bos> $A <eos>" if kind == "bos-and-eos" else "<bos> $A"
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    made.chat_template = CHAT
    return made


KINDS = ["plain", "bos", "bos-and-eos", "pad-is-eos"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_prompt_is_the_fields_and_the_answer_ends_with_eos(kind: str) -> None:
    made = tokenizer(kind)
    (encoded,) = PromptEncoder(made).encode([SAMPLE])
    assert made.decode(encoded.prompt) == ("<bos>" if kind.startswith("bos") else "") + PLAIN
    assert encoded.answer == made(" good", add_special_tokens=False)["input_ids"] + [made.eos_token_id]
    assert made.eos_token_id not in encoded.prompt


@pytest.mark.parametrize("kind", KINDS)
def test_the_chat_prompt_is_the_templates_and_has_no_second_bos(kind: str) -> None:
    made = tokenizer(kind)
    (encoded,) = PromptEncoder(made, style="chat").encode([SAMPLE])
    assert made.decode(encoded.prompt) == f"<|user|>{PLAIN}<|end|><|assistant|>"
    assert made.decode(encoded.answer) == "good<eos>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["paper", "instruction_last"])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_the_instructions_tokens_are_found(style: str, order: str, kind: str) -> None:
    made = tokenizer(kind)
    (encoded,) = PromptEncoder(made, style=style, order=order).encode([SAMPLE])
    first, stop = encoded.instruction
    assert made.decode(encoded.prompt[first:stop]) == SAMPLE.instruction
    last = made.decode(encoded.prompt[stop:]).startswith("\nAnswer:")
    assert last == (order == "instruction_last")


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("order", ["paper", "instruction_last"])
def test_a_long_sample_loses_the_end_of_its_text_and_nothing_else(style: str, order: str) -> None:
    made, text = tokenizer("bos"), "é😀 many words " * 40
    encoder = PromptEncoder(made, style=style, order=order, max_length=220)
    whole, cut = encoder.encode([SAMPLE, replace(SAMPLE, text=text)])
    assert encoder.truncated == 1
    assert 220 - 4 <= len(cut) <= 220  # a character is at most four bytes, and none is cut in two
    assert cut.answer == whole.answer
    assert made.decode(cut.prompt[slice(*cut.instruction)]) == SAMPLE.instruction
    said = made.decode(cut.prompt)
    kept = said.split("\nText: ")[1].split("\n")[0].removesuffix("<|end|><|assistant|>")
    assert len(kept) > 20 and text.startswith(kept)
    assert said.replace(f"\nText: {kept}", "") == made.decode(whole.prompt).replace(f"\nText: {SAMPLE.text}", "")


def test_a_prompt_that_does_not_fit_without_its_text_is_named() -> None:
    with pytest.raises(InputError, match="data.max_length: sample a/1 needs 99 tokens .* 54 are left"):
        PromptEncoder(tokenizer("plain"), max_length=60).encode([SAMPLE])


def test_a_tokenizer_without_a_chat_template_is_named() -> None:
    with pytest.raises(InputError, match="prompt.style: .* has no chat template; use prompt.style=plain"):
        PromptEncoder(tiny_tokenizer(), style="chat")


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_generation_sees_what_training_saw(style: str) -> None:
    encoder = PromptEncoder(tokenizer("bos"), style=style)
    assert encoder.encode_prompts([SAMPLE]) == [encoder.encode([SAMPLE])[0].prompt]


def test_a_shared_encoder_counts_the_training_samples_alone() -> None:
    encoder = PromptEncoder(tokenizer("plain"), max_length=220)
    long = replace(SAMPLE, text="many words " * 40)
    encoder.encode_prompts([long])
    assert encoder.truncated == 0
    encoder.encode([long])
    assert encoder.truncated == 1


def test_the_encoder_of_a_configuration(make_config: Callable[..., Config]) -> None:
    made = tokenizer("plain")
    config = make_config(**{"prompt.style": "chat", "prompt.order": "instruction_last", "data.max_length": 230})
    samples = [SAMPLE, replace(SAMPLE, text="many words " * 40)]
    same = PromptEncoder(made, style="chat", order="instruction_last", max_length=230)
    assert PromptEncoder.of(config, made).encode(samples) == same.encode(samples)
