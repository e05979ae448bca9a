"""Odd values of `lora` and `model` are one sentence, whoever of PEFT and transformers dies of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.modeling import check_tables, load_model, make_trainable, with_fields_of_init_from


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
        ("init_lora_weights", "pissa_niter_4", "lora.init_lora_weights: 'pissa_niter_4' changes the base model"),
        ("init_lora_weights", "olora", "lora.init_lora_weights: 'olora' changes the base model"),
        ("targets", "(", "lora: peft does not take it"),
        ("inference_mode", True, "lora: it leaves nothing to train"),
    ],
)
def test_an_odd_value_of_lora_is_named(
    field: str, value: object, said: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(**{f"lora.{field}": value})
    with pytest.raises(InputError) as error:
        make_trainable(load_model(config.model, torch.float32), config)
    assert said in str(error.value)


def test_an_attention_that_is_not_there_is_named(make_config: Callable[..., Config]) -> None:
    for attention in ("no-such-attention", "flash_attention_2"):
        with pytest.raises(InputError, match="cannot be loaded as a causal LM"):
            load_model(make_config(**{"model.attn": attention}).model, torch.float32)


def test_an_adapter_that_a_run_goes_on_from_keeps_its_fields(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    first = make_config("first", **{"lora.targets": ["q_proj", "v_proj"]})
    make_trainable(load_model(first.model, torch.float32), first).save_pretrained(str(tmp_path / "adapter"))
    goes_on = {"init_from": str(tmp_path / "adapter")}
    found = with_fields_of_init_from(make_config(lora=goes_on)).lora
    assert (found.r, found.alpha, found.dropout, found.targets) == (4, 16, 0.0, ["q_proj", "v_proj"])
    same = {"r": 4, "dropout": 0.0, "targets": ["v_proj", "q_proj"]}
    assert with_fields_of_init_from(make_config(lora=goes_on | same)).lora.r == 4
    for field, value, theirs in (
        ("r", 16, 4),
        ("dropout", 0.1, 0.0),
        ("targets", ["q_proj"], None),
        ("use_dora", True, False),
    ):
        with pytest.raises(InputError) as error:
            with_fields_of_init_from(make_config(lora=goes_on | {field: value}))
        assert f"lora.{field} is {value}, but " in str(error.value) and f"leave lora.{field} out" in str(error.value)
        assert theirs is None or f"but {theirs} in the adapter" in str(error.value)


def test_a_tied_head_is_not_adapted(make_config: Callable[..., Config]) -> None:
    config = make_config(**{"lora.targets": ["q_proj", "lm_head"]})
    with pytest.raises(InputError, match="lora: it adapts the head, but head and embeddings are one weight"):
        make_trainable(load_model(config.model, torch.float32), config)


def test_ids_and_positions_beyond_the_tables() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    check_tables(model, 29, [3, 29], 16)
    with pytest.raises(InputError, match="the tokenizer's pad token has the id 30, but the model's table has 30 rows"):
        check_tables(model, 30, [3], 16)
    with pytest.raises(InputError, match="a token of the data has the id 31"):
        check_tables(model, 29, [31], 16)
    with pytest.raises(InputError, match=r"data.max_length: 17 is more than the 16 positions"):
        check_tables(model, 29, [3], 17)
