"""What crosses the network at ZeRO 3: bytes each rank gathers and reduces in an optimizer step, method by method.

    python benchmarks/traffic.py                              # 2 ranks, 4 micro-batches per step, a tiny random Llama
    python benchmarks/traffic.py --micro-batches 1 --json results/step_cost/traffic.json

Real runs of the trainer over gloo, with torch.distributed's collectives counted at its door: a gather counts the bytes
of the whole tensor it makes on a rank, a reduction those of the tensor a rank gives. The last of two optimizer steps is
shown. `sweeps` is the gathered bytes over the bytes of all parameters, in a step and in a micro-batch of it: one
forward or one backward is one sweep, and a little more where a tied table is fetched as embedding and as head.

The model is tiny, so that what DeepSpeed keeps whole for its smallness must be switched off to see what happens to a
large one: stage3_param_persistence_threshold, stage3_max_live_parameters and stage3_max_reuse_distance are 0, every
weight is partitioned, and a weight is given back after each use. Bytes are in float32; in bfloat16 all are half.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from measuring import show, write_json
from on_ranks import on_ranks
from torch import Tensor, nn

from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.tiny import tiny_model, tiny_tokenizer

_ANIT = {"name": "anit", "preset": "paper"}
_TREE = {"schedule": "prefix_tree"}
_BEHIND = {**_ANIT, "tokens": "instruction", **_TREE}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "noisy_sft"},
    "sft_tree": {"name": "noisy_sft", **_TREE},
    "anit_naive": {**_ANIT, "passes": "separate"},
    "anit": _ANIT,
    "anit_clean": {**_ANIT, "gradient": "clean"},
    "anit_pipelined": {**_ANIT, "schedule": "pipelined"},
    "anit_tree": _BEHIND,
    "anit_clean_tree": {**_BEHIND, "gradient": "clean"},
    "pgd": {"name": "pgd", "steps": 3},
    "freelb": {"name": "freelb", "steps": 3},
}
WHAT = {
    "sft": "noisy_sft: one pass",
    "sft_tree": "the same, shared tokens once in the row",
    "anit_naive": "attack, clean and adversarial, a pass each",
    "anit": "attack, then clean and adversarial rows joined",
    "anit_clean": "gradient: clean, two passes",
    "anit_pipelined": "the next attack inside the training pass",
    "anit_tree": "a trunk, then attack and joined rows behind it",
    "anit_clean_tree": "a trunk, then clean and adversarial rows behind it",
    "pgd": "three attacks, one training pass",
    "freelb": "three training passes",
}
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}
STEPS = 2  # the first records the order of modules, by which the second fetches ahead
# Collective -> (what it is, which arguments hold the counted tensors).
COLLECTIVES: dict[str, tuple[str, str]] = {
    "all_gather": ("gathered", "tensor_list"),
    "all_gather_into_tensor": ("gathered", "output_tensor"),
    "reduce_scatter": ("reduced", "input_list"),
    "reduce_scatter_tensor": ("reduced", "input"),
    "reduce": ("reduced", "tensor"),
    "all_reduce": ("reduced", "tensor"),
    "broadcast": ("gathered", "tensor"),
}


def write_inputs(folder: Path, samples: int) -> None:
    """A tiny model, a classification set of `samples` training sentences, and its instructions."""
    tiny_model(layers=4, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for split, size in (("train", samples), ("dev", 2), ("test", 2)):
        rows = [{"text": f"{split} {i} " + "so " * (i % 7), "label": str(i % 2)} for i in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "instructions.yaml").write_text(
        "task: classification\nquestion: Which kind?\nformat: one label\nlabels: {'0': odd, '1': even}\n"
        "concise: [Say which kind the text is of., Decide on the kind of text.]\n"
    )


def run_config(folder: Path, mode: str, *, ranks: int, micro_batches: int, padding_free: bool) -> Config:
    """Two optimizer steps of a method, `micro_batches` of two samples each on every rank."""
    raw = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {
            "dataset": "jsonl", "path": str(folder), "instructions": "concise",
            "instructions_file": str(folder / "instructions.yaml"),
        },
        "prompt": {"order": "instruction_last" if "tree" in mode else "paper"},
        "method": {"schedule": "three_pass", **METHODS[mode]},
        "lora": {"r": 8, "dropout": 0.0},
        "train": {
            "max_steps": STEPS, "global_batch": 2 * ranks * micro_batches, "micro_batch": 2, "log_every": 1000,
            "checkpoint_every": 0, "padding_free": padding_free,
        },
        "eval": {"every": None, "test": False, "max_new_tokens": 1},
        "deepspeed": ZERO3,
        "out": str(folder / mode),
    }  # fmt: skip
    return validate(raw, source="benchmarks/traffic.py")


def count_collectives(counts: Counter[str]) -> None:
    """From now on every collective of this process adds its bytes to `counts`."""

    def counted(original: Callable[..., Any], kind: str, argument: str) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = signature.bind(*args, **kwargs).arguments[argument]
            tensors = [tensors] if isinstance(tensors, Tensor) else tensors
            counts[kind] += sum(t.numel() * t.element_size() for t in tensors)
            return original(*args, **kwargs)

        return call

    for name, (kind, argument) in COLLECTIVES.items():
        call = counted(getattr(torch.distributed, name), kind, argument)
        for module in (torch.distributed, torch.distributed.distributed_c10d):
            setattr(module, name, call)


def count_invalidations(counts: Counter[str]) -> None:
    """From now on `counts` knows how often ZeRO-3 forgot the order of modules by which it fetches ahead."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    original = PartitionedParameterCoordinator._invalidate_trace

    def call(coordinator: Any) -> None:
        counts["invalidations"] += 1
        original(coordinator)

    PartitionedParameterCoordinator._invalidate_trace = call


def bytes_of_rank(configs: list[Config]) -> list[dict[str, int]]:
    """Train every run in this process: the bytes of the last optimizer step of each."""
    log = Path(configs[0].out).parent / f"rank{os.environ['RANK']}.log"
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    counts: Counter[str] = Counter()
    count_collectives(counts)  # before DeepSpeed keeps references to them
    count_invalidations(counts)
    from anit_ds.training import loop

    of_step: dict[str, int] = {}
    step = loop.Trainer._optimizer_step

    def counted_step(trainer: loop.Trainer) -> None:
        before = counts.copy()
        step(trainer)
        of_step.clear()
        of_step.update(counts - before)
        of_step["parameters"] = sum(whole_size(p) * p.element_size() for p in trainer.module.parameters())

    loop.Trainer._optimizer_step = counted_step  # type: ignore[assignment, method-assign]
    counted = []
    for config in configs:
        loop.train(config)
        counted.append(dict(of_step))
    return counted


def whole_size(parameter: nn.Parameter) -> int:
    """Elements of a parameter before ZeRO-3 partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def measure(
    folder: Path, modes: Sequence[str], *, ranks: int, micro_batches: int, padding_free: bool
) -> list[dict[str, Any]]:
    """The rows of the table, from one run of each mode on the same ranks; ratios are to the first."""
    shape: dict[str, Any] = {"ranks": ranks, "micro_batches": micro_batches, "padding_free": padding_free}
    configs = [run_config(folder, mode, **shape) for mode in modes]
    try:
        counted = on_ranks(ranks, bytes_of_rank, configs)
    except SystemExit as failure:
        raise SystemExit(f"{failure}\n{(folder / 'rank0.log').read_text()[-2000:]}") from failure
    return [
        {
            "mode": mode,
            "what": WHAT[mode],
            "trace_invalidations": counts.get("invalidations", 0),
            "gathered_bytes": counts["gathered"],
            "gathered_ratio_to_sft": counts["gathered"] / counted[0]["gathered"],
            "sweeps": counts["gathered"] / counts["parameters"],
            "sweeps_per_micro_batch": counts["gathered"] / counts["parameters"] / micro_batches,
            "reduced_bytes": counts["reduced"],
            "reduced_ratio_to_sft": counts["reduced"] / counted[0]["reduced"],
        }
        for mode, counts in zip(modes, counted, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--micro-batches", type=int, default=4, help="a rank's micro-batches in an optimizer step")
    parser.add_argument("--modes", default=",".join(METHODS), help="names, separated by commas; sft is always there")
    parser.add_argument("--padding-free", action="store_true", help="train.padding_free: true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    named = arguments.modes.split(",")
    if unknown := set(named) - set(METHODS):
        parser.error(f"--modes: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the ranks: the threads of two would wait for each other
    shape = {
        "ranks": arguments.ranks,
        "micro_batches": arguments.micro_batches,
        "padding_free": arguments.padding_free,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, samples=2 * arguments.ranks * arguments.micro_batches * STEPS)
        rows = measure(folder, [mode for mode in METHODS if mode in ("sft", *named)], **shape)
    print(f"ZeRO 3, {arguments.ranks} ranks, {arguments.micro_batches} micro-batches: per rank and optimizer step")
    show(rows)
    if arguments.json:
        write_json(arguments.json, {"command": "python " + " ".join(sys.argv), **shape, "rows": rows})


if __name__ == "__main__":
    main()
