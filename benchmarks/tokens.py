"""How many tokens an optimizer step runs through the model, by what an attack may touch and by schedule.

    python benchmarks/tokens.py --data DATA --model MODEL --json results/step_cost/tokens.json

Counted, not timed: the same on every machine. Each number is the mean over the steps of an epoch of 100 sentences, of
the tokens that pass forward and backward, as `schedule: auto` counts them (anit_ds/training/auto_schedule.py). `ours`
takes two passes, `sft` one. Of the model only the tokenizer is read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import show, write_json

from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.modeling import load_tokenizer
from anit_ds.training.auto_schedule import candidates
from anit_ds.training.feed import Feed

# What a step attacks: nothing, or the tokens that `method.tokens` names.
SCOPES = ("sft", "prompt", "text", "instruction")
COLUMNS = ("dataset", "batch", "scope", "padded", "tree", "tree_to_sft")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--model", required=True, help="a model, or a folder with a tokenizer")
    parser.add_argument("--datasets", nargs="+", default=["sst2", "14lap", "agnews", "webnlg", "14res"])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 16], help="samples of a micro-batch")
    parser.add_argument("--order", choices=["instruction_last", "paper"], default="instruction_last")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.datasets:
        for batch in arguments.batches:
            sft = 0.0
            for scope in SCOPES:
                padded, tree = count(arguments, name, batch, scope)
                sft = sft or tree
                rows.append({"dataset": name, "batch": batch, "scope": scope, "padded": round(padded),
                             "tree": round(tree), "tree_to_sft": round(tree / sft, 2)})  # fmt: skip
    show(rows, COLUMNS)
    if arguments.json:
        write_json(arguments.json, {"order": arguments.order, "rows": rows})


def count(arguments: argparse.Namespace, name: str, batch: int, scope: str) -> tuple[float, float]:
    """Mean tokens of a step: (whole prompts, padded; a prefix tree)."""
    joint = {"name": "anit", "preset": "ours", "updates": "joint", "tokens": scope}
    method: dict[str, Any] = {"name": "sft"} if scope == "sft" else joint
    with tempfile.TemporaryDirectory() as folder:
        config = validate({
            "model": {"name_or_path": str(arguments.model)},
            "data": {"dataset": name, "path": str(arguments.data / name), "instructions": "concise", "max_train": 100,
                     "max_dev": 1, "max_length": 512},
            "prompt": {"order": arguments.order},
            "lora": {"dropout": 0.0},
            "train": {"global_batch": batch, "micro_batch": batch},
            "eval": {"test": False},
            "method": method,
            "out": f"{folder}/run",
        }, source="this benchmark")  # fmt: skip
        feed = _feed(config, Path(folder) / "data")
        epoch = [feed.batches(n, feed.samples_of(n), lambda batch: [0.0] * batch.size) for n in range(feed.per_epoch)]
        steps = [candidates(config, step, sharded=False, on_gpu=False) for step in epoch]
    return statistics.mean(s[0].tokens for s in steps), statistics.mean(s[-1].tokens for s in steps)


def _feed(config: Config, folder: Path) -> Feed:
    tokenizer = load_tokenizer(config.model)
    return Feed(
        config, PromptEncoder.of(config, tokenizer), lambda epoch: RunData.load(config, folder, epoch=epoch),
        accumulation=1, pad_id=tokenizer.pad_token_id, device=torch.device("cpu"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
