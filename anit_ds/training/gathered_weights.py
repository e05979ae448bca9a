"""ZeRO-3's weights, whole on every rank for the time of an evaluation, where they fit.

Otherwise a token of an answer costs a sweep over the network, and a rank with short answers waits for the others with
every token. Inside, the modules' hooks are mute: the order in which DeepSpeed fetches ahead stays as training left it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus
from torch import nn

from anit_ds.ranks import distributed
from anit_ds.ranks.device import on_gpu
from anit_ds.ranks.memory import free_bytes

logger = logging.getLogger(__name__)

# Of what is free; the rest is for keys, values and logits.
_SHARE_FOR_WEIGHTS = 0.5


@contextmanager
def whole_for_evaluation(engine: Any, wanted: bool | None) -> Iterator[None]:
    """Inside, nothing is gathered and no rank waits for another (`distributed.in_step` is false). All ranks enter
    together; each may run as many passes as it likes, without gradients. Does nothing below ZeRO 3, with `wanted`
    False and, with None, where one rank has not twice the room."""
    elsewhere = _elsewhere(engine.module)
    if not elsewhere or wanted is False or (wanted is None and not _fits(elsewhere)):
        yield
        return
    with (
        GatheredParameters(elsewhere),
        _mute(engine.optimizer.parameter_offload),
        distributed.out_of_step(engine.module),
    ):
        yield


def _elsewhere(module: nn.Module) -> list[Any]:
    """The parameters that other ranks have parts of."""
    return [p for p in module.parameters() if getattr(p, "ds_status", None) is ZeroParamStatus.NOT_AVAILABLE]


def _fits(parameters: list[Any]) -> bool:
    needed = sum(p.ds_numel * p.element_size() for p in parameters)
    free = min(distributed.all_gather_objects(free_bytes() // (1 if on_gpu() else distributed.ranks_here())))
    fits = needed <= _SHARE_FOR_WEIGHTS * free
    how = "are gathered once an evaluation" if fits else "do not fit whole, and are gathered with every pass"
    logger.info("the weights' %.1f GiB %s (%.1f GiB are free; eval.whole_weights)", needed / 2**30, how, free / 2**30)
    return fits


@contextmanager
def _mute(offload: Any) -> Iterator[None]:
    """Inside, the hooks of ZeRO 3 keep their stack of modules and do nothing else."""
    silent = {
        "pre_sub_module_forward_function": parameter_offload.FWD_MODULE_STACK.append,
        "post_sub_module_forward_function": lambda module: None,
        "get_param_coordinator": lambda: _NoCoordinator,
    }
    vars(offload).update(silent)
    try:
        yield
    finally:
        for name in silent:
            delattr(offload, name)


class _NoCoordinator:
    @staticmethod
    def reset_step() -> None:
        """No order to record."""
