"""DeepSpeed: its configuration made from the run's YAML and a JSON, and the engine around the model.

What both could say must agree: a JSON value is "auto", absent, or equal to the YAML's; anything else is an error that
names both. Optimizer and schedule belong to the YAML alone.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers.integrations import HfDeepSpeedConfig

from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.prefix_tree import PrefixTreeLM
from anit_ds.config import Config, TrainConfig
from anit_ds.errors import InputError, TrainingFailed, shown
from anit_ds.files import json_problem
from anit_ds.modeling import dtype_name
from anit_ds.training.deepspeed_fields import check_deepspeed_config

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def deepspeed_config(config: Config, *, ranks: int, accumulation: int, dtype: torch.dtype) -> dict[str, Any]:
    """The dictionary given to `deepspeed.initialize`, with every "auto" decided.

    Raises InputError: no such file, not JSON, a value that contradicts the YAML, ZeRO 0 in half precision.
    """
    source, json_config = read_deepspeed_json(config.deepspeed)
    for key in ("bf16", "fp16", "zero_optimization", "data_types", "timers"):
        if not isinstance(json_config.get(key, {}), dict):
            raise InputError(f"{source}: {key} is {shown(json_config[key])}, not an object")
    decided = {
        "train_micro_batch_size_per_gpu": (config.train.micro_batch, "train.micro_batch"),
        "gradient_accumulation_steps": (accumulation, "train.global_batch / (ranks x train.micro_batch)"),
        "train_batch_size": (config.train.global_batch, "train.global_batch"),
        # DeepSpeed clips to 1.0 when this is absent, so it is always said.
        "gradient_clipping": (config.train.grad_clip, "train.grad_clip"),
    }
    result = dict(json_config)
    for key, (value, field) in decided.items():
        given = json_config.get(key, "auto")
        if given != "auto" and given != value:
            raise InputError(
                f'{source}: {key} is {shown(given)}, but the run\'s YAML says {value} ({field}); use "auto"'
            )
        result[key] = value
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
    check_deepspeed_config(source, {key: value for key, value in result.items() if key != "train_batch_size"})
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
    # Off, these let a gradient with a NaN in it into the weights.
    for part, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if part in result and result[part].get(key) is False:
            raise InputError(f"{source}: {part}.{key} is false, but it guards the weights; remove it from the JSON")
    result.setdefault("steps_per_print", 2**31)
    # Its throughput timer waits for the device six times in a step, the attack's passes included.
    result.setdefault("timers", {"throughput": {"enabled": False}})
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


def build_optimizer(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """PyTorch's own optimizer: DeepSpeed's AdamW compiles an extension first, and on a CPU that takes a minute."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=train.lr, betas=train.adam_betas, eps=train.adam_eps, weight_decay=train.weight_decay
    )


def learning_rate(train: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`: linear warm-up, then the schedule down to 0.

    A function of the step alone: there is no scheduler state to save or to get out of step.
    """
    warmup = math.ceil(train.warmup * total_steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if train.lr_schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (1 - progress if train.lr_schedule == "linear" else 1)


def build_engine(model: nn.Module, config: Config, ds_config: dict[str, Any]) -> PerturbableLM:
    """The model under DeepSpeed, ready for a method: `lm.engine` is the engine, `lm.module` its module."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_no_skipped_step)
    tree = config.method.schedule == "prefix_tree"
    lm = PrefixTreeLM(model, keeps_trunk=config.attacks_behind_context) if tree else PerturbableLM(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer(parameters, config.train), config=ds_config, dist_init_required=False
    )
    lm.run_under(engine)
    engine.train()
    return lm


def _is_no_skipped_step(record: logging.LogRecord) -> bool:
    """One line for each skipped step, for as long as they go on; the monitor says it better and not without end."""
    return "OVERFLOW! Skipping step" not in record.getMessage()


def take_step(engine: Any) -> float:
    """`engine.step()` behind a micro-batch's backward; returns the gradient's global norm behind the last one, else 0.

    Infinite or NaN where the gradient is not finite: such a gradient is thrown away and neither weights nor moments
    move. All ranks find the same. Raises TrainingFailed where float16's loss scale has nowhere left to go.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return 0.0
    if engine.zero_optimization_stage() == 0:
        return _take_plain_step(engine)
    try:
        engine.step()
    except Exception as error:  # DeepSpeed raises no narrower one
        if "loss scale already at minimum" not in str(error):
            raise
        raise TrainingFailed(
            "every step overflows in float16, at the smallest loss scale too; try model.dtype=bfloat16 or float32, or "
            "a smaller train.lr"
        ) from error
    return float(engine.get_global_grad_norm())


def _take_plain_step(engine: Any) -> float:
    """At stage 0 PyTorch's own optimizer runs, which looks at nothing, where ZeRO's looks first."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]  # averaged over ranks by now
    norm = float(nn.utils.get_total_norm(gradients))
    if math.isfinite(norm):
        engine.step()
        return norm
    without = engine.optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.zero_grad())
    engine.step()
    without.remove()
    return norm


@contextmanager
def sharded_loading(ds_config: dict[str, Any]) -> Iterator[None]:
    """Inside, at ZeRO-3, `from_pretrained` splits each weight over the ranks as it is read: no rank holds them all."""
    # transformers looks for a living HfDeepSpeedConfig; the local name keeps it alive just as long as the block.
    here = HfDeepSpeedConfig(ds_config) if zero_stage(ds_config) == 3 else None
    try:
        with large_blocks_given_back() if here else nullcontext():
            yield
    finally:
        del here


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Inside, glibc gives a freed tensor's memory back to the system at once; does nothing with another C library.

    Left alone it keeps such memory, and the small parts that stay of each gathered weight cut it into pieces too small
    for the next: a rank that holds half of a 302 MiB model at ZeRO-3 was seen to take 432 MiB, like this 174.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 64 << 10)
    try:
        yield
    finally:
        # What glibc goes up to by itself: training frees and takes the same sizes all the time.
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


def gathered_module(module: nn.Module) -> AbstractContextManager[Any]:
    """Inside, the module's weights are whole on every rank, whatever ZeRO stage partitioned them."""
    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
    return context
