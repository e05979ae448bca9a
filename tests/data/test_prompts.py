"""From samples to tokens: what a model reads for its prompt, its answer and its instruction, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from anit_ds.config import Config
from anit_ds.data.examples import Sample, sample_key
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
    assert list(encoded.answer) == made(" good", add_special_tokens=False)["input_ids"] + [made.eos_token_id]
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
def test_the_tokens_of_instruction_and_text_are_found(style: str, order: str, kind: str) -> None:
    made = tokenizer(kind)
    (encoded,) = PromptEncoder(made, style=style, order=order).encode([SAMPLE])
    first, stop = encoded.instruction
    assert made.decode(encoded.prompt[first:stop]) == SAMPLE.instruction
    last = made.decode(encoded.prompt[stop:]).startswith("\nAnswer:")
    assert last == (order == "instruction_last")
    assert made.decode(encoded.prompt[slice(*encoded.text)]) == SAMPLE.text


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("order", ["paper", "instruction_last"])
def test_a_long_sample_loses_the_end_of_its_text_and_nothing_else(style: str, order: str) -> None:
    made, text = tokenizer("bos"), "é😀 many words " * 40
    encoder = PromptEncoder(made, style=style, order=order, max_length=220)
    whole, cut = encoder.encode([SAMPLE, replace(SAMPLE, text=text)])
    assert len(encoder.cut["train"]) == 1
    assert 220 - 4 <= len(cut) <= 220  # a character is at most four bytes, and none is cut in two
    assert cut.answer == whole.answer
    assert made.decode(cut.prompt[slice(*cut.instruction)]) == SAMPLE.instruction
    said = made.decode(cut.prompt)
    kept = said.split("\nText: ")[1].split("\n")[0].removesuffix("<|end|><|assistant|>")
    assert made.decode(cut.prompt[slice(*cut.text)]) == kept
    assert len(kept) > 20 and text.startswith(kept)
    assert said.replace(f"\nText: {kept}", "") == made.decode(whole.prompt).replace(f"\nText: {SAMPLE.text}", "")


def test_a_prompt_that_does_not_fit_without_its_text_is_named() -> None:
    with pytest.raises(InputError, match="data.max_length: sample a/1 needs 99 tokens .* 54 are left"):
        PromptEncoder(tokenizer("plain"), max_length=60).encode([SAMPLE])


def test_an_answer_without_room_for_its_prompt_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    encoder = PromptEncoder(tokenizer("plain"), max_length=220)
    long = replace(SAMPLE, id="a/2", answer="good; " * 40)
    for _ in range(2):  # two epochs
        (encoded,) = encoder.encode([long, SAMPLE])
        assert encoded.key == sample_key(SAMPLE.id)
    assert encoder.left_out == {sample_key("a/2")} and len(encoder.cut["train"]) == 0
    assert caplog.text.count("1 training samples are left out") == 1
    assert len(encoder.encode_prompts([long])[0]) <= 220  # it is asked all the same
    with pytest.raises(InputError, match="data.max_length: sample a/2 needs"):
        encoder.encode([long])


def test_cut_texts_count_once_and_for_each_split() -> None:
    encoder = PromptEncoder(tokenizer("plain"), max_length=220)
    long = [replace(SAMPLE, id=f"a/{i}", text="many words " * 40) for i in range(5)]
    for _ in range(3):
        encoder.encode(long[:2])
        encoder.encode_prompts(long[2:3], "dev")
        encoder.encode_prompts(long[2:], "test")
    assert {split: len(keys) for split, keys in encoder.cut.items()} == {"train": 2, "dev": 1, "test": 3}
    assert len(encoder.cut["train"]) == 2


CONTROL = ["<eos>", "<pad>", "</s>", "<|im_end|>", "<|user|>", "<|assistant|>", "<think>"]


def with_control(kind: str) -> Any:
    """A vocabulary with control tokens of both kinds, and a word of a domain that is to be recognised in texts."""
    made = tokenizer(kind)
    made.add_special_tokens({"additional_special_tokens": CONTROL[2:-1]})
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("été", special=False)])
    made.chat_template = CHAT.replace("<|assistant|>", "<|assistant|><think>")
    return made


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("kind", ["plain", "bos", "bos-and-eos"])
@pytest.mark.parametrize("said", [*CONTROL, " <eos><eos>", "a<<think>think>b", "<|im_end|>\n<|im_start|>user"])
def test_a_text_never_becomes_control(said: str, kind: str, style: str) -> None:
    made = with_control(kind)
    encoder = PromptEncoder(made, style=style)
    inside = replace(SAMPLE, text=f"so {said} été", answer=f"good {said}", instruction=f"Say {said} if.")
    plain, odd = encoder.encode([replace(SAMPLE, text="so été"), inside])
    control = {id for id, token in made.added_tokens_decoder.items() if token.content in (*CONTROL, "<bos>")}
    frame = [id for id in plain.prompt if id in control]
    assert [id for id in odd.prompt if id in control] == frame
    assert made.decode(odd.prompt).count(said) >= 2 and made.decode(odd.prompt[slice(*odd.instruction)]) == (
        inside.instruction
    )
    assert made.decode(odd.prompt[slice(*odd.text)]).startswith(f"so {said} ")
    assert made.decode(odd.answer) == f"{' ' if style == 'plain' else ''}good {said}<eos>"
    assert [id for id in odd.answer if id in control] == [made.eos_token_id]
    assert made.convert_tokens_to_ids("été") in odd.prompt  # a word of a domain is none of them
    assert encoder.encode_prompts([inside]) == [list(odd.prompt)]


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_texts_without_control_are_tokenised_as_ever(style: str) -> None:
    made = with_control("bos")
    (encoded,) = PromptEncoder(made, style=style).encode([SAMPLE])
    text = f"<|user|>{PLAIN}<|end|><|assistant|><think>" if style == "chat" else PLAIN
    assert list(encoded.prompt) == made(text, add_special_tokens=style == "plain")["input_ids"]


BODY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (BODY.replace("m.content", "m.content.replace('\n', ' ')"), "changes what it is given: of sample a/1"),
        (BODY.replace("m.content", "m.content | upper"), "changes what it is given"),
        (BODY.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"), "changes what it is"),
        (BODY.replace("m.content", "m.content[:50]"), "changes what it is given"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}", "system first"),
        ("{{ messages[0].content.no_such_method() }}", "takes no prompt"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for", "takes no prompt"),
    ],
)
def test_a_template_that_rewrites_is_refused_by_its_name(template: str, said: str) -> None:
    made = tokenizer("plain")
    made.chat_template, made.name_or_path = template, "models/odd"
    with pytest.raises(InputError, match="prompt.style: the chat template of models/odd") as error:
        PromptEncoder(made, style="chat").encode([SAMPLE])
    assert said in str(error.value) and "use prompt.style=plain" in str(error.value)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InputError, match="half a character"):
        PromptEncoder(tokenizer("plain")).encode_prompts([replace(SAMPLE, text="so \ud83d")])


def test_a_tokenizer_without_a_chat_template_is_named() -> None:
    with pytest.raises(InputError, match="prompt.style: .* has no chat template; use prompt.style=plain"):
        PromptEncoder(tiny_tokenizer(), style="chat")


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_generation_sees_what_training_saw(style: str) -> None:
    encoder = PromptEncoder(tokenizer("bos"), style=style)
    assert encoder.encode_prompts([SAMPLE]) == [list(encoder.encode([SAMPLE])[0].prompt)]


def test_a_shared_encoder_counts_the_training_samples_alone() -> None:
    encoder = PromptEncoder(tokenizer("plain"), max_length=220)
    long = replace(SAMPLE, text="many words " * 40)
    encoder.encode_prompts([long])
    assert len(encoder.cut["train"]) == 0
    encoder.encode([long])
    assert len(encoder.cut["train"]) == 1


def test_the_encoder_of_a_configuration(make_config: Callable[..., Config]) -> None:
    made = tokenizer("plain")
    config = make_config(**{"prompt.style": "chat", "prompt.order": "instruction_last", "data.max_length": 230})
    samples = [SAMPLE, replace(SAMPLE, text="many words " * 40)]
    same = PromptEncoder(made, style="chat", order="instruction_last", max_length=230)
    assert PromptEncoder.of(config, made).encode(samples) == same.encode(samples)


def test_an_answer_begins_as_it_would_behind_the_prompt() -> None:
    """Mistral's and Phi-3's tokenizers put a blank before any text; most leave texts as they are."""
    blank = "▁"
    pieces = [blank, "a", "A", "n", "s", "w", "e", "r", ":", f"{blank}a", "an", f"{blank}an", "<eos>"]
    merges = [(blank, "a"), ("a", "n"), (f"{blank}a", "n")]
    own = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    own.normalizer = normalizers.Sequence([normalizers.Prepend(blank), normalizers.Replace(" ", blank)])
    made = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<eos>")
    assert made.convert_ids_to_tokens(PromptEncoder(made).encode_answers(["an"])[0]) == [f"{blank}an", "<eos>"]
    assert made.tokenize("Answer: an")[-1] == f"{blank}an"
