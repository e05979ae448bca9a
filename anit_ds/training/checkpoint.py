"""Checkpoints that hold what training moves and nothing else, in a form that any number of ranks and ZeRO stage can
load.

A checkpoint is a folder step-000200/ with
    weights.safetensors     the trainable weights, float32 masters, gathered
    optimizer.safetensors   AdamW's two moments, gathered
    adapter/                the best adapter so far, where dev has chosen one
    state.json              step, best dev score, beta, ... and the SHA-256 of all files, its own content included

It takes its place when complete, so it is whole or absent (see `replacing_folder`). Everything else a run needs
(schedule, sampler, dropout masks, delta0) is a function of the configuration and the step, and has no state to save.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anit_ds.errors import InputError
from anit_ds.files import replacing_folder
from anit_ds.modeling import adapter_folder
from anit_ds.ranks import distributed
from anit_ds.sealed import Damaged, read_sealed, read_sealed_folder, seal_folder

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = "state.json"
_NAME = re.compile(r"step-[0-9]{6,}")
logger = logging.getLogger("anit")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything the optimizer moves."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_checkpoint(
    engine: Any, folder: Path, state: dict[str, Any], *, keep: int, adapter: Path | None = None
) -> Path:
    """Write folder/step-NNNNNN from all ranks' parts, then `prune`. `state` must hold "step".

    `adapter` is the folder of the best one so far, which a run that goes on from here must have. Every rank calls it;
    rank 0 writes. Returns the checkpoint's path.
    """
    weights, moments = gather_weights(engine), _gather_moments(engine)
    target = folder / f"step-{state['step']:06d}"
    if distributed.rank() == 0:
        with replacing_folder(target) as unfinished:
            save_file(weights, unfinished / "weights.safetensors")
            save_file(moments, unfinished / "optimizer.safetensors")
            if adapter is not None:
                shutil.copytree(adapter, unfinished / "adapter")
            seal_folder(unfinished, _STATE, state)
        prune(folder, target, keep=keep)
    distributed.barrier()
    return target


def prune(folder: Path, current: Path, *, keep: int) -> None:
    """Delete all checkpoints but `current` and the `keep` - 1 before it.

    A later one is of no use: it is damaged, or `current` would not have been resumed from.
    """
    newest_first = _newest_first(folder)
    at = newest_first.index(current)
    for old in newest_first[:at] + newest_first[at + keep :]:
        shutil.rmtree(old)


def latest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose files have the checksums that were written; a broken one is passed over, and said."""
    for path in _newest_first(folder):
        try:
            read_sealed_folder(path, _STATE)
        except Damaged as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
        else:
            return path
    return None


def load_checkpoint(engine: Any, path: Path, *, configurations: Collection[str | None]) -> dict[str, Any]:
    """Put a checkpoint's weights and moments into the engine, whatever its stage and ranks; returns its state.

    Raises InputError where the checkpoint belongs to none of the configurations (by its hash) or another set of
    trainable weights.
    """
    state = read_sealed(path / _STATE)
    if state.get("configuration") not in configurations:
        raise InputError(f"{path}: is a checkpoint of another configuration; take it away, or begin anew with --fresh")
    weights = load_file(path / "weights.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    names = set(trainable(engine.module))
    if names != set(weights):
        odd = sorted(names ^ set(weights))[0]
        raise InputError(f"{path}: holds other trainable weights than this run (such as {odd})")
    load_weights(engine, weights, masters=True)
    if moments:
        _load_moments(engine, moments, state["optimizer_steps"])
    return state


def restore_adapter(checkpoint: Path, adapter: Path) -> bool:
    """Put the best adapter that a checkpoint knows of where a run has its own, whatever has become of that.

    A checkpoint of an older version holds none: then whether the run's own is what was saved; False, and said, where it
    is not, so that the evaluations on dev to come choose anew.
    """
    if (checkpoint / "adapter").is_dir():
        with replacing_folder(adapter) as unfinished:
            shutil.copytree(checkpoint / "adapter", unfinished, dirs_exist_ok=True)
        return True
    try:
        adapter_folder(adapter)
    except InputError as error:
        logger.warning("the best adapter so far is lost, so dev chooses anew from here on: %s", error)
        return False
    return True


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """Trainable weights in float32 on the CPU, whole, on every rank (the optimizer's masters where there are any)."""
    gathered = {}
    for name, p in trainable(engine.module).items():
        master = safe_get_full_fp32_param(p)
        gathered[name] = (p if master is None else master).detach().float().cpu().contiguous().clone()
    return gathered


def load_weights(engine: Any, weights: dict[str, Tensor], *, masters: bool) -> None:
    """Set trainable weights on every rank; with `masters` also the float32 copies that the optimizer steps."""
    parameters = trainable(engine.module)
    with (
        torch.no_grad(),
        deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0),
    ):
        for name, p in parameters.items():
            p.copy_(weights[name].to(p.device, p.dtype))
    if masters:
        for name, p in parameters.items():
            _set_full(p, weights[name], None)


def optimizer_steps(engine: Any) -> int:
    """How many updates AdamW has made (fewer than the steps where float16 skipped some)."""
    states = list(_base_optimizer(engine).state.values())
    return int(states[0]["step"]) if states and "step" in states[0] else 0


def _gather_moments(engine: Any) -> dict[str, Tensor]:
    base = _base_optimizer(engine)
    if isinstance(base, torch.optim.SGD) or not base.state:
        return {}
    moments = {}
    for name, p in trainable(engine.module).items():
        for key in _MOMENTS:
            value = safe_get_full_optimizer_state(p, key)
            value = base.state[p][key] if value is None else value
            moments[f"{name}.{key}"] = value.detach().float().cpu().contiguous().clone()
    return moments


def _load_moments(engine: Any, moments: dict[str, Tensor], steps: int) -> None:
    base = _base_optimizer(engine)
    for stepped in _stepped_tensors(engine):
        base.state[stepped] = {
            "step": torch.tensor(float(steps)),
            **{key: torch.zeros_like(stepped, memory_format=torch.preserve_format) for key in _MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # ZeRO 1 and 2 link fragments after the first step
    for name, p in trainable(engine.module).items():
        for key in _MOMENTS:
            _set_full(p, moments[f"{name}.{key}"], key)


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside ZeRO's, or itself at stage 0."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _stepped_tensors(engine: Any) -> list[Tensor]:
    """What the torch optimizer really steps: ZeRO's flat float32 partitions, or the parameters themselves."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return list(trainable(engine.module).values())


def _set_full(p: Any, value: Tensor, moment: str | None) -> None:
    """Write a whole tensor into this rank's part of it: the float32 master (moment None) or one of AdamW's moments.

    ZeRO-3 pads the last rank's part, which deepspeed's own setter does not allow for, so its part is cut out here.
    """
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(p, "ds_id"):
        part = p.ds_tensor.ds_numel
        flat = torch.zeros(part * distributed.world_size(), dtype=torch.float32)
        flat[: value.numel()] = value.flatten()
        rank = distributed.rank()
        local = flat[part * rank : part * (rank + 1)]
        if moment is None:
            safe_set_local_fp32_param(p, local)
        else:
            safe_set_local_optimizer_state(p, local, moment)
    elif hasattr(p, "_hp_mapping"):
        if moment is None:
            safe_set_full_fp32_param(p, value)
        else:
            safe_set_full_optimizer_state(p, value, moment)


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by the number of their step; whatever else lies there is not ours."""
    ours = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(ours, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
