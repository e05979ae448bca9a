"""The chat template of an exported model, beside the prompts of training, for the tokenizers that families have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer, GenerationConfig

from anit_ds.config import Config
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.export import write_prompt
from anit_ds.tiny import tiny_tokenizer

CHAT = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)


def tokenizer(begins: bool, ends: bool) -> Any:
    made = tiny_tokenizer()
    made.add_special_tokens({"bos_token": AddedToken("<bos>", special=True)})
    if begins:
        special = [("<bos>", made.bos_token_id), ("<eos>", made.eos_token_id)]
        single = "<bos> $A <eos>" if ends else "<bos> $A"
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    made.chat_template = CHAT
    return made


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("order", ["paper", "instruction_last"])
@pytest.mark.parametrize("begins, ends", [(False, False), (True, False), (True, True)])
def test_the_template_gives_the_tokens_of_training(
    style: str, order: str, begins: bool, ends: bool, make_config: Callable[..., Config], tmp_path: Path,
):  # fmt: skip
    GenerationConfig(repetition_penalty=1.05).save_pretrained(tmp_path / "base")
    config = make_config(
        **{"prompt.style": style, "prompt.order": order, "model.name_or_path": str(tmp_path / "base")}
    )  # fmt: skip
    data, made = RunData.load(config, None), tokenizer(begins, ends)
    assert write_prompt(tmp_path, config, data, made, {"jsonl": 7}) == []
    made.chat_template = (tmp_path / "chat_template.jinja").read_text()
    made.save_pretrained(tmp_path / "saved")
    alone, samples = AutoTokenizer.from_pretrained(tmp_path / "saved"), data["jsonl"].split("test")
    prompts = PromptEncoder.of(config, tokenizer(begins, ends)).encode_prompts(samples)
    for sample, prompt in zip(samples, prompts, strict=True):
        chat = [{"role": "system", "content": "ignored"}, {"role": "user", "content": sample.text}]
        assert alone.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == prompt
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 7 and made.eos_token_id in settings["eos_token_id"]
    assert settings["repetition_penalty"] == 1.05, "the answers that were scored had it"
    assert style == "plain" or "26 Jul 2024" in made.decode(prompts[0]), "a prompt is the same tomorrow"


def test_a_template_that_would_say_something_else_is_not_written(make_config: Callable[..., Config], tmp_path: Path):
    made, config = tokenizer(False, False), make_config()
    made.add_special_tokens({"additional_special_tokens": ["<pre>"]})
    special = [("<bos>", made.bos_token_id), ("<pre>", made.convert_tokens_to_ids("<pre>"))]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> <pre> $A", special_tokens=special
    )
    (tmp_path / "chat_template.jinja").write_text("the base model's")
    (note,) = write_prompt(tmp_path, config, RunData.load(config, None), made, {"jsonl": 9})
    assert note.startswith("no chat template: it would not give the prompt of training for 'a text'")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["generation_config.json", "prompt.json"]
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 9 and not settings["do_sample"]
