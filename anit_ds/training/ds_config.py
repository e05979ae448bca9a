"""DeepSpeed's configuration, made from the run's YAML and a JSON.

What both could say must agree: a JSON value is "auto", absent, or equal to the YAML's; anything else is an error that
names both. Optimizer and schedule belong to the YAML alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from anit_ds.config import Config
from anit_ds.errors import InputError, shown
from anit_ds.files import json_problem
from anit_ds.modeling import dtype_name
from anit_ds.training.batching import Split
from anit_ds.training.ds_fields import check_deepspeed_config

REDUCE_BUCKET = 50_000_000  # elements


def deepspeed_config(config: Config, *, split: Split, dtype: torch.dtype) -> dict[str, Any]:
    """The dictionary given to `deepspeed.initialize`, with every "auto" decided.

    Raises InputError: no such file, not JSON, a value that contradicts the YAML, ZeRO 0 in half precision.
    """
    source, given = read_deepspeed_json(config.deepspeed)
    result = _decided(source, given, config, split, dtype)
    check_deepspeed_config(source, result)
    _refuse_combinations(source, result, config, dtype)
    return _with_our_defaults(result, dtype)


def _decided(
    source: str, json_config: dict[str, Any], config: Config, split: Split, dtype: torch.dtype
) -> dict[str, Any]:
    """The JSON with what the YAML says of it. Raises InputError where the two disagree."""
    for key in ("bf16", "fp16", "zero_optimization", "data_types", "timers"):
        if not isinstance(json_config.get(key, {}), dict):
            raise InputError(f"{source}: {key} is {shown(json_config[key])}, not an object")
    yaml = {
        "train_micro_batch_size_per_gpu": (config.train.micro_batch, "train.micro_batch"),
        "gradient_accumulation_steps": (split.micro_batches, "global_batch / (ranks x micro_batch), rounded up"),
        "train_batch_size": (config.train.global_batch, "train.global_batch"),
        "gradient_clipping": (config.train.grad_clip, "train.grad_clip"),
    }
    for key, (value, field) in yaml.items():
        given = json_config.get(key, "auto")
        if given != "auto" and given != value:
            raise InputError(
                f'{source}: {key} is {shown(given)}, but the run\'s YAML says {value} ({field}); use "auto"'
            )
    result = {key: value for key, value in json_config.items() if key not in yaml} | {
        # Without a global batch, which must be a multiple of these for DeepSpeed, and need not be for us.
        "train_micro_batch_size_per_gpu": split.samples,
        "gradient_accumulation_steps": split.micro_batches,
        # DeepSpeed clips to 1.0 when this is absent, so it is always said.
        "gradient_clipping": config.train.grad_clip,
    }
    for key, field in (("optimizer", "train.optimizer"), ("scheduler", "train.lr_schedule")):
        if key in result:
            raise InputError(f"{source}: {key} is decided by the run's YAML ({field}); remove it from the JSON")
    for key, half in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        section = dict(result.get(key, {}))
        given = section.get("enabled", "auto")
        if given != "auto" and given != (dtype is half):
            raise InputError(
                f"{source}: {key}.enabled is {shown(given).lower()}, but model.dtype is {dtype_name(dtype)}"
            )
        result[key] = {**section, "enabled": dtype is half}
    if "zero_optimization" in result:
        result["zero_optimization"] = _without_auto(result["zero_optimization"])
    return result


def _refuse_combinations(source: str, result: dict[str, Any], config: Config, dtype: torch.dtype) -> None:
    """Raises InputError for what DeepSpeed takes and does not compute as the run's YAML means it."""
    stage = zero_stage(result)
    if stage == 0 and dtype is not torch.float32:
        raise InputError(
            f"{source}: ZeRO stage 0 with {dtype_name(dtype)} counts AdamW's steps twice in DeepSpeed 0.19; use stage "
            "1, or float32"
        )
    if stage == 3 and config.model.load_in_4bit:
        raise InputError(
            f"{source}: ZeRO stage 3 takes each weight apart as it is loaded, and weights in 4 bits are packed whole; "
            "use stage 2 with model.load_in_4bit"
        )
    for field in ("use_dora", "trainable_token_indices"):
        if stage == 3 and config.lora and (config.lora.model_extra or {}).get(field):
            raise InputError(
                f"{source}: ZeRO stage 3 leaves each rank a part of every weight, and lora.{field} begins from whole "
                f"ones; use stage 2, or leave lora.{field} out"
            )
    if result.get("torch_autocast", {}).get("enabled"):
        raise InputError(
            f"{source}: torch_autocast computes in another dtype than model.dtype, {dtype_name(dtype)}; remove it from "
            "the JSON"
        )
    # Off, these let a gradient with a NaN in it into the weights.
    for part, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if part in result and result[part].get(key) is False:
            raise InputError(f"{source}: {part}.{key} is false, but it guards the weights; remove it from the JSON")


def _with_our_defaults(result: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What the trainer needs or is better off with, where the JSON says nothing of it."""
    result.setdefault("steps_per_print", 2**31)
    # Its throughput timer waits for the device six times in a step, the attack's passes included.
    result.setdefault("timers", {"throughput": {"enabled": False}})
    if zero_stage(result):
        # DeepSpeed makes the buffer whole, of up to 2 GB by its own default, however few weights a LoRA trains.
        result["zero_optimization"] = {"reduce_bucket_size": REDUCE_BUCKET, **result["zero_optimization"]}
    if dtype is not torch.float32:
        # Sums of half-precision gradients round away what many micro-batches or ranks add: 1% at 64, 2% at 256.
        result["data_types"] = {"grad_accum_dtype": "fp32", **result.get("data_types", {})}
        result.setdefault("communication_data_type", "fp32")
    result["zero_allow_untested_optimizer"] = True  # SGD, for comparisons
    result["zero_force_ds_cpu_optimizer"] = False  # an offloaded torch.optim.AdamW is the same AdamW
    return result


def read_deepspeed_json(given: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(where it comes from, its content).

    Raises InputError for a file that is not there or not a JSON object, a repeated key, infinity and NaN.
    """
    if isinstance(given, dict):
        return "deepspeed", given
    path = Path(given)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise InputError(f"{path}: the key {shown(twice[0])} is repeated")
        return dict(pairs)

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise InputError(f"{path}: {text[:40]} is no finite number")
        return number

    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)
    except OSError as error:
        raise InputError(f"deepspeed: cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        where = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise InputError(f"{where}: not valid JSON ({json_problem(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return str(path), content


def zero_stage(ds_config: dict[str, Any]) -> int:
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """ZeRO's own "auto" values are transformers' convention; DeepSpeed's defaults stand in for them."""
    return {k: _without_auto(v) if isinstance(v, dict) else v for k, v in section.items() if v != "auto"}
