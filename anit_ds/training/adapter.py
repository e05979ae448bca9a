"""The adapter as PEFT writes it: saved from any ZeRO stage, checked after saving, read back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from anit_ds.files import replacing_folder
from anit_ds.modeling import ADAPTER_SEAL
from anit_ds.ranks import distributed
from anit_ds.sealed import seal_folder
from anit_ds.training.checkpoint import trainable

_FILE = "adapter_model.safetensors"


def save_adapter(engine: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write the module's adapter to `folder`, whole or not at all, with its checksums and what is to be said `about`
    it. All ranks call it; rank 0 writes.

    Raises RuntimeError when a saved tensor is empty or not finite: an adapter saved empty under ZeRO-3 looks like
    success until somebody loads it.
    """
    module = engine.module
    parameters = trainable(module)
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
    if distributed.rank() == 0:
        with replacing_folder(folder) as unfinished:
            module.save_pretrained(str(unfinished), state_dict=weights)
            _check(unfinished / _FILE)
            # safetensors writes for this user alone; an adapter is as readable as what lies beside it.
            shutil.copymode(unfinished / "adapter_config.json", unfinished / _FILE)
            seal_folder(unfinished, ADAPTER_SEAL, about)
    distributed.barrier()


def read_adapter(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Parameter name -> weight of a saved adapter, under the names `trainable(module)` has."""
    saved = load_file(folder / _FILE)
    names = {}
    for name, p in trainable(module).items():
        (short,) = get_peft_model_state_dict(module, state_dict={name: p})
        names[short] = name
    return {names[short]: weight for short, weight in saved.items() if short in names}


def _check(file: Path) -> None:
    weights = load_file(file)
    if not weights:
        raise RuntimeError(f"{file.name}: saved without any weight")
    for name, weight in weights.items():
        if weight.numel() == 0 or not torch.isfinite(weight).all():
            raise RuntimeError(f"{file.name}: {name} was saved {'empty' if weight.numel() == 0 else 'with NaN or inf'}")
