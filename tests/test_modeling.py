"""Odd values of `lora` and `model` are one sentence, whoever of PEFT and transformers dies of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.modeling import add_adapter, load_model


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bias", "odd", "lora.bias: input should be 'none', 'all' or 'lora_only', not 'odd'"),
        ("rank_pattern", 3, "lora.rank_pattern: input should be a valid dictionary, not 3"),
        ("rank_pattern", {"q_proj": "x"}, "lora: peft does not take it"),
        ("rank_pattern", {"(": 4}, "lora: peft does not take it"),
        ("modules_to_save", "q_proj", "lora.modules_to_save: input should be a valid list"),
        ("runtime_config", 3, "lora.runtime_config: input should be a dictionary"),
        ("layer_replication", [[0, 9]], "lora: peft does not take it"),
        ("init_lora_weights", "odd", "odd"),
        ("targets", "(", "lora: peft does not take it"),
        ("inference_mode", True, "lora: it leaves nothing to train"),
    ],
)
def test_an_odd_value_of_lora_is_named(
    field: str, value: object, said: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(**{f"lora.{field}": value})
    with pytest.raises(InputError) as error:
        add_adapter(load_model(config.model, torch.float32), config)
    assert said in str(error.value)


def test_an_attention_that_is_not_there_is_named(make_config: Callable[..., Config]) -> None:
    for attention in ("no-such-attention", "flash_attention_2"):
        with pytest.raises(InputError, match="cannot be loaded as a causal LM"):
            load_model(make_config(**{"model.attn": attention}).model, torch.float32)
