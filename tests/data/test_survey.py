"""What `anit data` says of lengths, against what training tokenises."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.config import Config
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.data.survey import PLAIN, Template, survey
from anit_ds.modeling import chat_template, load_tokenizer

CHAT = (
    "<|im_start|>system\nYou answer.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_lengths_are_those_of_training(
    style: str, tiny_folder: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (model / "chat_template.jinja").write_text(CHAT)
    config = make_config(**{"model.name_or_path": str(model), "prompt.style": style, "data.max_length": 2000})
    (of,) = RunData.load(config, None).sets
    encoded = PromptEncoder.of(config, load_tokenizer(config.model)).encode(of.split("train"))
    told = survey(of, config, Template(*chat_template(config.model) or ()) if style == "chat" else PLAIN)
    assert told.unit == "tokens" and told.lengths["train"].longest == max(map(len, encoded))
    assert told.prompt.startswith("<|im_start|>system") == (style == "chat")
    nowhere = config.model_copy(update={"model": config.model.model_copy(update={"name_or_path": str(tmp_path)})})
    assert survey(of, nowhere).unit == "words" and chat_template(nowhere.model) is None
    assert survey(of, nowhere, None).unit == "words without the chat template"
