"""Which schedule is fastest on 8 to 4,096 ranks: steps of `anit` at ZeRO 3, played through by `anit_ds.planning`.

    python benchmarks/many_ranks.py --json results/plan/many_ranks.json       # some minutes; no GPU, no weights

A random-weight shape stands for its namesake, whose config.json is all that is needed. Instructions stand last and are
what is attacked, so that all three schedules are possible. Every rank has as many micro-batches whatever the ranks, so
the global batch grows with them. What is assumed of GPUs and network is in docs/cost.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from forecast import SHAPES
from measuring import show, write_json

from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.planning.forecast import Forecaster
from anit_ds.planning.simulation import TFLOPS, Cluster
from anit_ds.planning.workload import Workload, made_up

RANKS = (8, 64, 512, 4096)
# GB/s of a GPU to other nodes: a card of 400 Gb/s for each of the eight, or one for the node.
NETWORKS = {"a card a GPU": 50.0, "a card a node": 6.25}
SIZES = ((4, 512), (1, 128))  # samples x tokens of a micro-batch
MICRO_BATCHES = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    settings = SHAPES[asked.shape]
    settings.architectures = [f"{type(settings).__name__.removesuffix('Config')}ForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        settings.save_pretrained(folder)
        for samples, length in SIZES:
            workload = Workload([made_up(number, length) for number in range(samples)])
            plans = Forecaster(workload, torch.bfloat16)
            for network, bandwidth in NETWORKS.items():
                for micro_batches in MICRO_BATCHES:
                    for ranks in RANKS:
                        config = _config(folder, samples, samples * micro_batches * ranks)
                        found = plans.schedules(config, Cluster(ranks, 80.0, bandwidth, TFLOPS))
                        steps = {name: forecast.step.seconds for name, forecast in found.items()}
                        rows.append(
                            {"size": f"{samples} x {length}", "network": network, "micro_batches": micro_batches,
                             "ranks": ranks, **steps, "fastest": min(steps, key=steps.__getitem__)}
                        )  # fmt: skip
    show(rows)
    if asked.json:
        write_json(asked.json, {"shape": asked.shape, "tflops": TFLOPS, "rows": rows})


def _config(folder: str, micro_batch: int, global_batch: int) -> Config:
    return validate(
        {
            "model": {"name_or_path": folder},
            "data": {"dataset": "sst2", "path": folder},
            "prompt": {"order": "instruction_last"},
            "method": {"name": "anit", "preset": "paper", "tokens": "instruction"},
            "lora": {"r": 16, "dropout": 0.0},
            "train": {"micro_batch": micro_batch, "global_batch": global_batch},
            "deepspeed": "ds_configs/zero3.json",
            "out": folder,
        },
        source="benchmark",
    )


if __name__ == "__main__":
    main()
