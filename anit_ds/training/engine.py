"""DeepSpeed's engine around the model: loaded for it, built with PyTorch's own optimizer, and stepped."""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers.integrations import HfDeepSpeedConfig

from anit_ds.adversarial.assembly import perturbable
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.config import Config, TrainConfig
from anit_ds.errors import RunFailed
from anit_ds.training.ds_config import zero_stage

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


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


def set_learning_rate(engine: Any, train: TrainConfig, step: int, total_steps: int) -> float:
    """Give the optimizer the rate of this step; returns it."""
    lr = learning_rate(train, step, total_steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    return lr


def build_engine(model: nn.Module, config: Config, ds_config: dict[str, Any]) -> PerturbableLM:
    """The model under DeepSpeed, ready for a method: `lm.engine` is the engine, `lm.module` its module."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_no_skipped_step)
    lm = perturbable(model, config)
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

    Which one is the last `PerturbableLM.backward` tells the engine, as only a method knows how many passes it makes.
    Infinite or NaN where the gradient is not finite: such a gradient is thrown away and neither weights nor moments
    move. All ranks find the same. Raises RunFailed where float16's loss scale has nowhere left to go.
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
        raise RunFailed(
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
