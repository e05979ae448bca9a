"""A rank for the tests: loads a model at ZeRO-3 and prints, as JSON, what its memory rose to meanwhile.

python loading_program.py MODEL DTYPE
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 (not to be counted as the model's)

from anit_ds.config import ModelConfig
from anit_ds.modeling import load_model
from anit_ds.ranks import distributed
from anit_ds.training.engine import sharded_loading


def anonymous_bytes() -> int:
    """Memory that only this process can hold; a file it has mapped is the system's to drop."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def main() -> None:
    model, dtype = ModelConfig(name_or_path=sys.argv[1]), torch.bfloat16
    ranks = distributed.init()
    torch.ones(1)
    before, seen, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ds_config = {"train_batch_size": ranks.world_size, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    with sharded_loading(ds_config):
        parameters = list(load_model(model, dtype).parameters())
    done.set()
    watcher.join()
    elements, held = sum(p.ds_numel for p in parameters), sum(p.ds_tensor.numel() for p in parameters)
    print(json.dumps({"one_copy": elements * dtype.itemsize, "held": held * dtype.itemsize, "peak": max(seen)}))


if __name__ == "__main__":
    main()
