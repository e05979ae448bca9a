"""The best weights so far: an adapter as PEFT writes it, or a whole model as transformers does.

Saved from any ZeRO stage, checked after saving, read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from anit_ds.errors import RunFailed
from anit_ds.files import replacing_folder
from anit_ds.modeling import WEIGHTS_SEAL
from anit_ds.ranks import distributed
from anit_ds.sealed import seal_folder
from anit_ds.training.checkpoint import StoredTensors, gathered, trainable


def save_best(engine: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write what the module trains to `folder`, whole or not at all, with its checksums and what is to be said `about`
    it. All ranks call it; rank 0 writes.

    Raises RuntimeError when a saved tensor is empty or not finite: an adapter saved empty under ZeRO-3 looks like
    success until somebody loads it.
    """
    module = engine.module
    weights: dict[str, Tensor] = {}
    for name, p in gathered(trainable(module)):
        if distributed.rank() == 0:
            weights[name] = p.detach().cpu().clone()
    if distributed.rank() == 0:
        with replacing_folder(folder) as unfinished:
            module.save_pretrained(str(unfinished), state_dict=weights | _buffers(module))
            _check(unfinished)
            # safetensors writes for this user alone; weights are as readable as what lies beside them.
            description = unfinished / ("adapter_config.json" if _is_adapter(module) else "config.json")
            for file in unfinished.glob("*.safetensors"):
                shutil.copymode(description, file)
            seal_folder(unfinished, WEIGHTS_SEAL, about)
    distributed.barrier()


def read_best(module: nn.Module, folder: Path) -> Mapping[str, Tensor]:
    """Parameter name -> saved weight, under the names `trainable(module)` has."""
    saved = StoredTensors(*sorted(folder.glob("*.safetensors")))
    if _is_adapter(module):
        mine = trainable(module)
        names = {id(p): name for name, p in mine.items()}
        # Without embedding layers: `auto` would ask the hub for the base's configuration.
        of_peft = get_peft_model_state_dict(module, state_dict=mine, save_embedding_layers=False)
        return {names[id(p)]: saved[short] for short, p in of_peft.items() if short in saved}
    if trainable(module).keys() <= set(saved):
        return saved
    # A checkpoint may have other names than the module, such as one tensor for each expert.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=next(module.parameters()).dtype)
    return dict(model.named_parameters())


def _is_adapter(module: nn.Module) -> bool:
    return isinstance(module, PeftModel)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Those that a whole model's checkpoint holds beside its weights."""
    if _is_adapter(module):
        return {}
    kept = module.state_dict().keys()
    return {name: buffer.detach().cpu().clone() for name, buffer in module.named_buffers() if name in kept}


def _check(folder: Path) -> None:
    weights = StoredTensors(*sorted(folder.glob("*.safetensors")))
    if not weights:
        raise RunFailed(f"{folder.name}: saved without any weight")
    for name, weight in weights.items():
        if weight.numel() == 0 or not torch.isfinite(weight).all():
            raise RunFailed(f"{folder.name}: {name} was saved {'empty' if not weight.numel() else 'with NaN or inf'}")
