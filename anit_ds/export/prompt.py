"""How an exported model is asked as training asked it: prompt.json, a chat template, and generation settings.

The chat template takes the last message as the text and puts the run's instruction, question, format and options around
it, so that a server with chat messages (vLLM, `transformers serve`, TGI) gives the model the tokens it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.prompts import PromptEncoder, render_prompt, timeless
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.errors import shown
from anit_ds.files import write_atomically, write_json
from anit_ds.modeling import stops_in

_PLACE = "\x00"  # stands for the text; no data set's text may hold it


def write_prompt(folder: Path, config: Config, data: RunData, tokenizer: Any, limits: Mapping[str, int]) -> list[str]:
    """Write prompt.json, generation_config.json and, for a run of one data set, chat_template.jinja.

    limits: of each data set the tokens that an answer may have. Returns what has to be said about it: there is no
    template where it would not give the tokens that training gave, nor the base model's, which asks otherwise.
    """
    write_json(folder / "prompt.json", {s.name: _described(s, config, limits.get(s.name)) for s in data.sets})
    own = _own_settings(config)
    settings = {"do_sample": False, "eos_token_id": stops_in(own, tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if (penalty := own.repetition_penalty) not in (None, 1.0):  # which every answer that was scored had
        settings["repetition_penalty"] = penalty
    longest = max((limit for s in data.sets if (limit := limits.get(s.name))), default=None)
    write_json(folder / "generation_config.json", {**settings, "max_new_tokens": longest})
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if len(data.sets) > 1:
        return ["no chat template: a mixture has a prompt for each of its data sets; prompt.json has them all"]
    (only,) = data.sets
    template = chat_template(only.asked(_PLACE), config, tokenizer)
    if odd := _differs(template, only, config, tokenizer):
        return [f"no chat template: it would not give the prompt of training for {shown(odd)}; prompt.json has it"]
    write_atomically(folder / "chat_template.jinja", template)
    return []


def _own_settings(config: Config) -> GenerationConfig:
    """The checkpoint's generation settings; the defaults where it has none."""
    with suppress(OSError):
        return GenerationConfig.from_pretrained(config.model.name_or_path, revision=config.model.revision or "main")
    return GenerationConfig()


def chat_template(sample: Sample, config: Config, tokenizer: Any) -> str:
    """A Jinja template that renders a conversation's last message as this sample's text."""
    before, after = render_prompt(sample, config.prompt.order).split(_PLACE)
    if config.prompt.style == "chat":
        # The tokenizer's own template goes round the same prompt.
        around = f"[{{'role': 'user', 'content': {_text(before)} + messages[-1]['content'] + {_text(after)}}}]"
        own = timeless(tokenizer.chat_template)
        return f"{{%- set messages = {around} -%}}\n{own}"
    first = tokenizer("a")["input_ids"][0]
    begins = tokenizer.decode([first]) if first in tokenizer.all_special_ids else ""
    return f"{{{{- {_text(begins + before)} + messages[-1]['content'] + {_text(after)} }}}}"


def _text(text: str) -> str:
    """A Jinja string literal."""
    return json.dumps(text, ensure_ascii=False)


def _differs(template: str, of: DataSet, config: Config, tokenizer: Any) -> str | None:
    """A text whose prompt has other tokens in the template than in training, or None."""
    encoder = PromptEncoder.of(config, tokenizer)
    for text in ("a text", 'Two "lines": {{ x }}\nand an é', *(s.text for s in list(of.split("dev"))[:20])):
        (expected,) = encoder.encode_prompts([of.asked(text)])
        found = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            chat_template=template,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
        cut, special = len(expected) == config.data.max_length, any(t in text for t in tokenizer.all_special_tokens)
        if found != expected and not cut and not special:
            return text
    return None


def _described(of: DataSet, config: Config, limit: int | None) -> dict[str, Any]:
    sample = of.asked("{text}")
    return {
        "task": of.task.name,
        "style": config.prompt.style,
        "prompt": render_prompt(sample, config.prompt.order),
        "labels": of.instructions.labels,
        "max_new_tokens": limit,
        "stop": ["\n"],
    }
