"""Checkpoints that hold what training moves and nothing else, in a form that any number of ranks and ZeRO stage can
load.

A checkpoint is a folder step-000200/ with
    weights.safetensors     the trainable weights, float32 masters, gathered
    optimizer.safetensors   AdamW's two moments, gathered
    state.json              step, best dev score, beta, ... and the SHA-256 of the two files

It takes its place when complete, so it is whole or absent (see `replacing_folder`). Everything else a run needs
(schedule, sampler, dropout masks, delta0) is a function of the configuration and the step, and has no state to save.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anit_ds.errors import InputError
from anit_ds.files import read_json, replacing_folder, sha256_of, write_json
from anit_ds.ranks import distributed

_MOMENTS = ("exp_avg", "exp_avg_sq")
logger = logging.getLogger("anit")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything the optimizer moves."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def save_checkpoint(engine: Any, folder: Path, state: dict[str, Any], *, keep: int) -> Path:
    """Write folder/step-NNNNNN from all ranks' parts, then drop all but the `keep` newest. `state` must hold "step".

    Every rank calls it; rank 0 writes. Returns the checkpoint's path.
    """
    weights, moments = gather_weights(engine), _gather_moments(engine)
    target = folder / f"step-{state['step']:06d}"
    if distributed.rank() == 0:
        with replacing_folder(target) as unfinished:
            save_file(weights, unfinished / "weights.safetensors")
            save_file(moments, unfinished / "optimizer.safetensors")
            sums = {f.name: sha256_of(f) for f in sorted(unfinished.iterdir())}
            write_json(unfinished / "state.json", {**state, "sha256": sums})
        for old in _newest_first(folder)[keep:]:
            shutil.rmtree(old)
    distributed.barrier()
    return target


def latest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose files have the checksums that were written; a broken one is passed over, and said."""
    for path in _newest_first(folder):
        try:
            state = read_json(path / "state.json")
            broken = [name for name, digest in state["sha256"].items() if sha256_of(path / name) != digest]
        except (OSError, ValueError, KeyError) as error:
            broken = [str(error)]
        if not broken:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the one before", path, ", ".join(broken))
    return None


def load_checkpoint(engine: Any, path: Path) -> dict[str, Any]:
    """Put a checkpoint's weights and moments into the engine, whatever its stage and ranks; returns its state.

    Raises InputError where the checkpoint belongs to another set of trainable weights.
    """
    weights = load_file(path / "weights.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    names = set(trainable(engine.module))
    if names != set(weights):
        odd = sorted(names ^ set(weights))[0]
        raise InputError(f"{path}: holds other trainable weights than this run (such as {odd})")
    state: dict[str, Any] = read_json(path / "state.json")
    load_weights(engine, weights, masters=True)
    if moments:
        _load_moments(engine, moments, state["optimizer_steps"])
    return state


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
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
