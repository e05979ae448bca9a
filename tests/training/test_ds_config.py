"""DeepSpeed's JSON, read and checked whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.training.batching import Split
from anit_ds.training.ds_config import deepspeed_config, read_deepspeed_json

REPOSITORY = Path(__file__).parents[2]


def check(config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return deepspeed_config(config, split=Split.of(config.train, ranks=1), dtype=dtype)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shipped_is_taken(file: Path, make_config: Callable[..., Config]) -> None:
    made = check(make_config(deepspeed=str(file), **{"train.global_batch": 16, "train.micro_batch": 6}))
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (6, 3)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation': unknown key; did you mean zero_optimization?"),
        ({"zero_optimization": []}, r"zero_optimization is \[\], not an object"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage: input should be 0, 1, 2 or 3, not"),
        ({"zero_optimization": {"stage": 9}}, "zero_optimization.stage: "),
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 5}}, "zero_optimization.reduce_bucket: unknown key"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "x"}}}, "offload_optimizer.device: "),
        ({"bf16": 3}, "bf16 is 3, not an object"),
        ({"bfloat16": {"enabled": False}}, "'bfloat16': unknown key; did you mean bf16?"),
        ({"data_types": {"grad_accum": "fp32"}}, "data_types.grad_accum: unknown key; did you mean grad_accum_dtype?"),
        ({"activation_checkpointing": 3}, "DeepSpeed does not take it"),
        ({"steps_per_print": "often"}, "steps_per_print is 'often'"),
        ({"wall_clock_breakdown": "yes"}, "DeepSpeed does not take it"),
        ({"dump_state": "yes"}, "dump_state is 'yes'"),
        ({"communication_data_type": "fp7"}, "Invalid communication_data_type"),
        ({"nebula": {}}, "'nebula': unknown key"),
        ({"gradient_clipping": [1]}, r"gradient_clipping is \[1\], but the run's YAML says 1.0"),
    ],
)
def test_a_key_or_value_that_deepspeed_does_not_know(
    section: dict[str, Any], said: str, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(InputError, match=said) as error:
        check(make_config(deepspeed=section))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("field", [{"use_dora": True}, {"trainable_token_indices": [5, 6]}], ids=str)
def test_zero_3_refuses_adapters_that_begin_from_whole_weights(
    field: dict[str, Any], make_config: Callable[..., Config]
) -> None:
    lora = {f"lora.{name}": value for name, value in field.items()}
    check(make_config(deepspeed={"zero_optimization": {"stage": 2}}, **lora))
    with pytest.raises(InputError, match=f"lora.{next(iter(field))} begins from whole ones; use stage 2"):
        check(make_config(deepspeed={"zero_optimization": {"stage": 3}}, **lora))


def test_zero_3_refuses_weights_in_4_bits(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="packed whole; use stage 2 with model.load_in_4bit"):
        check(make_config(deepspeed={"zero_optimization": {"stage": 3}}, **{"model.load_in_4bit": True}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zero_0_counts_steps_twice_in_half_precision(dtype: torch.dtype, make_config: Callable[..., Config]) -> None:
    config = make_config(deepspeed={"zero_optimization": {"stage": 0}})
    with pytest.raises(InputError, match="ZeRO stage 0 with .*float16 counts AdamW's steps twice"):
        deepspeed_config(config, split=Split.of(config.train, ranks=1), dtype=dtype)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"x": "caf\xe9"}', r"ds\.json: not UTF-8 text \(byte 11\)"),
        ("{}".encode("utf-16"), r"ds\.json: not UTF-8 text"),
        (b'{"bf16": {}, "bf16": {}}', r"ds\.json: the key 'bf16' is repeated"),
        (b'{"gradient_clipping": Infinity}', "Infinity is no finite number"),
        (b'{"gradient_clipping": 1e999}', "1e999 is no finite number"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"x": 1' + b"0" * 5000 + b"}", "too many digits"),
        (b"[]", "expected a JSON object"),
        (b"{\n,}", r"ds\.json:2: not valid JSON"),
    ],
)
def test_bytes_that_are_no_configuration(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_bytes(raw)
    with pytest.raises(InputError, match=said):
        read_deepspeed_json(str(tmp_path / "ds.json"))


def test_a_byte_order_mark_and_numbers_of_yaml(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    (tmp_path / "ds.json").write_bytes(b'\xef\xbb\xbf{"zero_optimization": {"stage": 2, "reduce_bucket_size": 2e8}}')
    assert check(make_config(deepspeed=str(tmp_path / "ds.json")))["zero_optimization"]["reduce_bucket_size"] == 2e8
