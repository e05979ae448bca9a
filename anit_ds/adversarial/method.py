"""`build_method`: the method that a configuration names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from anit_ds.adversarial.methods.alternating import AlternatingNRM
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.methods.pipelined import PipelinedNRM
from anit_ds.adversarial.methods.warm_up import WarmedUp
from anit_ds.adversarial.rules import METHODS

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


def build_method(config: MethodConfig, *, seed: int, scale: float, total_steps: int | None = None) -> Method:
    """The method a configuration names.

    scale: `embedding_scale(model, config.eps_unit)`; with `eps_unit: absolute` it is not used.
    total_steps: the optimizer steps of the run, a share of which `warmup` is; without `warmup` they are not used.
    """
    method = _without_warmup(config, seed=seed, scale=scale)
    if config.warmup == 0:
        return method
    if total_steps is None:
        raise ValueError("method.warmup is a share of the run's optimizer steps: build_method needs total_steps")
    until = round(config.warmup * total_steps)
    return WarmedUp(method, until=until - until % config.replays)  # not in between a minibatch's replays


def _without_warmup(config: MethodConfig, *, seed: int, scale: float) -> Method:
    unit = 1.0 if config.eps_unit == "absolute" else scale
    if config.schedule == "pipelined":
        return PipelinedNRM.from_config(config, seed=seed, unit=unit)
    if config.alternates:
        return AlternatingNRM.from_config(config, seed=seed, unit=unit)
    module, _, name = METHODS[config.name].made_by.partition(":")
    kind = getattr(import_module(f"anit_ds.adversarial.methods.{module}"), name)
    method: Method = kind.from_config(config, seed=seed, unit=unit)
    return method
