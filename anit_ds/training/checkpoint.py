"""Checkpoints that hold what training moves and nothing else, in a form that any number of ranks and ZeRO stage can
load.

A checkpoint is a folder step-000200/ with
    weights.safetensors     the trainable weights, float32 masters, gathered
    optimizer.safetensors   AdamW's two moments, gathered
    adapter/ or model/      the best weights so far, where dev has chosen them
    state.json              step, best dev score, beta, float16's loss scale, ... and the SHA-256 of all files, its own
                            content included

It takes its place when complete, so it is whole or absent (see `replacing_folder`). Everything else a run needs
(schedule, sampler, dropout masks, delta0) is a function of the configuration and the step, and has no state to save.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anit_ds.errors import InputError
from anit_ds.files import replacing_folder
from anit_ds.ranks import distributed
from anit_ds.sealed import Damaged, read_sealed, read_sealed_folder, seal_folder

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATE = "state.json"
# Elements of the weights that a rank has whole at a time: all of a model's would not fit where ZeRO-3 is needed.
_WHOLE_AT_A_TIME = 1 << 26
_NAME = re.compile(r"step-[0-9]{6,}")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything the optimizer moves."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gathered(
    parameters: Mapping[str, nn.Parameter], *, modifier_rank: int | None = None
) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter, whole on every rank while it is at hand; all ranks go through all of them. With `modifier_rank`
    what that rank writes into it stays, on all."""
    for group in _groups(parameters):
        with deepspeed.zero.GatheredParameters([p for _, p in group], modifier_rank=modifier_rank):
            yield from group


def _groups(parameters: Mapping[str, nn.Parameter]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    group: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, p in parameters.items():
        elements = getattr(p, "ds_numel", p.numel())
        if group and size + elements > _WHOLE_AT_A_TIME:
            yield group
            group, size = [], 0
        group.append((name, p))
        size += elements
    if group:
        yield group


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when it is asked for: a rank need not hold a whole model of them."""

    def __init__(self, *files: Path) -> None:
        opened = [safe_open(file, framework="pt") for file in files]
        self._where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (no mapping)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def save_checkpoint(engine: Any, folder: Path, state: dict[str, Any], *, keep: int, best: Path | None = None) -> Path:
    """Write folder/step-NNNNNN from all ranks' parts, then `prune`. `state` must hold "step".

    `best` is the folder of the best weights so far, which a run that goes on from here must have. Every rank calls it;
    rank 0 writes. Returns the checkpoint's path.
    """
    weights, moments = _gather_weights(engine), _gather_moments(engine)
    target = folder / f"step-{state['step']:06d}"
    if distributed.rank() == 0:
        with replacing_folder(target) as unfinished:
            save_file(weights, unfinished / "weights.safetensors")
            save_file(moments, unfinished / "optimizer.safetensors")
            if best is not None:
                shutil.copytree(best, unfinished / best.name)
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


def step_of(path: Path) -> int:
    """The optimizer steps that a checkpoint has, by its folder's name."""
    return int(path.name.rpartition("-")[2])


def load_checkpoint(engine: Any, path: Path, *, configurations: Collection[str | None]) -> dict[str, Any]:
    """Put a checkpoint's weights and moments into the engine, whatever its stage and ranks; returns its state.

    Raises InputError where the checkpoint belongs to none of the configurations (by its hash) or another set of
    trainable weights.
    """
    state = read_sealed(path / _STATE)
    if state.get("configuration") not in configurations:
        raise InputError(f"{path}: is a checkpoint of another configuration; take it away, or begin anew with --fresh")
    weights = StoredTensors(path / "weights.safetensors")
    moments = StoredTensors(path / "optimizer.safetensors")
    names = set(trainable(engine.module))
    if names != set(weights):
        odd = sorted(names ^ set(weights))[0]
        raise InputError(f"{path}: holds other trainable weights than this run (such as {odd})")
    load_weights(engine, weights, masters=True)
    if moments:
        _load_moments(engine, moments, state["optimizer_steps"])
    if loss_scale(engine):  # a fixed one is the JSON's
        for name, value in state.get("loss_scale", {}).items():
            setattr(engine.optimizer.loss_scaler, name, value)
    return state


def restore_best(checkpoint: Path, best: Path) -> None:
    """Put the best weights that a checkpoint knows of where a run has its own, whatever has become of those."""
    with replacing_folder(best) as unfinished:
        shutil.copytree(checkpoint / best.name, unfinished, dirs_exist_ok=True)


def _gather_weights(engine: Any) -> dict[str, Tensor]:
    """Trainable weights in float32 on rank 0's CPU (the optimizer's masters where there are any); elsewhere nothing."""
    weights = {}
    for name, p in trainable(engine.module).items():
        master = safe_get_full_fp32_param(p)
        if distributed.rank() == 0:
            weights[name] = _for_a_file(p if master is None else master)
    return weights


def _for_a_file(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous().clone()


def load_weights(engine: Any, weights: Mapping[str, Tensor], *, masters: bool) -> None:
    """Set trainable weights on every rank; with `masters` also the float32 copies that the optimizer steps."""
    parameters = trainable(engine.module)
    with torch.no_grad():
        for name, p in gathered(parameters, modifier_rank=0):
            p.copy_(weights[name].to(p.device, p.dtype))
    if masters:
        for name, p in parameters.items():
            _set_full(p, weights[name], None)


def optimizer_steps(engine: Any) -> int:
    """How many updates AdamW has made (fewer than the steps where float16 skipped some)."""
    states = list(_base_optimizer(engine).state.values())
    return int(states[0]["step"]) if states and "step" in states[0] else 0


def loss_scale(engine: Any) -> dict[str, float]:
    """Where float16's search for its scale stands, the same on every rank; empty where there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return {}
    return {name: getattr(scaler, name) for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")}


def _gather_moments(engine: Any) -> dict[str, Tensor]:
    base = _base_optimizer(engine)
    if isinstance(base, torch.optim.SGD) or not base.state:
        return {}
    moments = {}
    for name, p in trainable(engine.module).items():
        for key in _MOMENTS:
            value = safe_get_full_optimizer_state(p, key)
            value = base.state[p][key] if value is None else value
            if distributed.rank() == 0:
                moments[f"{name}.{key}"] = _for_a_file(value)
    return moments


def _load_moments(engine: Any, moments: Mapping[str, Tensor], steps: int) -> None:
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
            if p in base.state:  # ZeRO 0 steps the parameters themselves, which deepspeed's setters know nothing of
                base.state[p][key].copy_(moments[f"{name}.{key}"])
            else:
                _set_full(p, moments[f"{name}.{key}"], key)


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside ZeRO's, or itself at stage 0."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _stepped_tensors(engine: Any) -> list[Tensor]:
    """What the torch optimizer really steps: ZeRO's flat float32 partitions, or the parameters themselves."""
    optimizer = engine.optimizer
    # ZeRO 3's, that of ZeRO 1 and 2, and that of ZeRO 1 in bfloat16, which is an optimizer of its own.
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return list(trainable(engine.module).values())


def _set_full(p: Any, value: Tensor, moment: str | None) -> None:
    """Write a whole tensor into this rank's part of it: the float32 master (moment None) or one of AdamW's moments.

    ZeRO-3 pads the last rank's part, which deepspeed's own setter does not allow for, so its part is cut out here. At
    ZeRO 0 a parameter is its own master. Raises AssertionError where a moment would go nowhere.
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
    elif moment is not None:
        raise AssertionError("a trained parameter that ZeRO does not know has no moments to load")


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by the number of their step; whatever else lies there is not ours."""
    ours = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(ours, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
