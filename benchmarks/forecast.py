"""What `anit plan` says of a step's memory beside what a step takes: predicted and measured peak, method by method.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 OMP_NUM_THREADS=1 \
      python benchmarks/forecast.py --json results/plan/memory.json
    python benchmarks/forecast.py --shape llama-3-8b gemma-2b --batch 4x512 --modes sft anit     # on a GPU
    python benchmarks/forecast.py --shape llama-3-8b llama-2-7b gemma-2b --batch 8x512 --saved   # no GPU needed

Predicted is `anit_ds.planning.footprint`, which runs nothing; measured is the peak of resident memory above what was
held before the step (or of the GPU's allocator), the least of some steps. Both are above weights and gradients. On a
CPU the C library has to hand freed memory back at once, or the peak has in it what it kept. Models are random: `small`
is wide enough for activations to outweigh what a process takes for itself, the others have their namesakes' shape and
are made on the GPU, in bfloat16. A step has two micro-batches where `schedule: pipelined` attacks the second in the
pass of the first; where a method makes several steps on a minibatch, they are measured together. `seconds` is the
median of as many steps more.

With `--saved` nothing is measured: beside the predicted peaks of an `anit` step in bfloat16 stands what autograd keeps
for the backward of its joined pass, counted by its own hooks (`torch.autograd.graph.saved_tensors_hooks`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import statistics
import tempfile
import weakref
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import peak_mb_of, show, time_of, write_json

from anit_ds.adversarial import Batch, Method, PerturbableLM, PipelinedNRM
from anit_ds.adversarial.assembly import attach_method, perturbable
from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.modeling import make_trainable
from anit_ds.planning.footprint import footprint
from anit_ds.planning.workload import Workload, made_up
from anit_ds.ranks.device import device, on_gpu

_ANIT = {"name": "anit", "preset": "paper"}
_TREE = {"tokens": "instruction", "schedule": "prefix_tree"}
MODES: dict[str, dict[str, Any]] = {
    "sft": {"name": "noisy_sft"},
    "sft, tree": {"name": "noisy_sft", "schedule": "prefix_tree"},
    "neftune": {"name": "neftune"},
    "anit": _ANIT,
    "anit, separate": {**_ANIT, "passes": "separate"},
    "anit, clean": {**_ANIT, "gradient": "clean"},
    "anit, pipelined": {**_ANIT, "schedule": "pipelined"},
    "anit, tree": {**_ANIT, **_TREE},
    "anit, clean, tree": {**_ANIT, "gradient": "clean", **_TREE},
    "anit, default": {"name": "anit", "schedule": "three_pass"},
    "anit, default, tree": {"name": "anit", "schedule": "prefix_tree"},
    "fgsm": {"name": "fgsm"},
    "pgd": {"name": "pgd", "steps": 3},
    "freelb": {"name": "freelb", "steps": 3},
}

SHAPES: dict[str, transformers.PretrainedConfig] = {
    "small": transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=8192, tie_word_embeddings=True,
    ),
    "llama-3-8b": transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    ),
    "llama-2-7b": transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000,
    ),
    "gemma-2b": transformers.GemmaConfig(
        hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1,
        head_dim=256, vocab_size=256000,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["small"])
    parser.add_argument("--batch", nargs="+", type=_batch, default=[(4, 64), (8, 128), (8, 256)], metavar="BxT",
                        help="samples x tokens of each")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--steps", type=int, default=3, help="measured for memory, and again for time on a GPU")
    parser.add_argument("--saved", action="store_true", help="no steps: what autograd keeps, beside the prediction")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.saved:
        rows = [_saved(*case) for case in product(asked.shape, asked.batch, (0.05, 0))]
        show(rows)
        if asked.json:
            write_json(asked.json, {"rows": rows, "dtype": "bfloat16"})
        return
    dtype = torch.bfloat16 if on_gpu() else torch.float32
    rows = []
    for shape in asked.shape:
        settings = SHAPES[shape]
        settings.architectures = [f"{type(settings).__name__.removesuffix('Config')}ForCausalLM"]
        with tempfile.TemporaryDirectory() as folder:
            settings.save_pretrained(folder)
            for mode in asked.modes:
                config = _config(folder, MODES[mode])
                lm = _model(config, settings, dtype)
                method = attach_method(lm, config, scale=1.0, total_steps=1)
                for samples, length in asked.batch:
                    made = [made_up(number, length) for number in range(samples)]
                    batch = Workload(made).micro_batch(config, samples)
                    predicted = footprint(config, batch, dtype, ahead=True).peak(1) / 2**20
                    row = {"shape": shape, "mode": mode, "size": f"{samples} x {length}", "predicted_mb": predicted}
                    row |= _measured(method, lm, batch, asked.steps)
                    row["ratio"] = predicted / row["measured_mb"]
                    rows.append(row)
                    print(row, flush=True)
                    if asked.json:
                        write_json(asked.json, {"rows": rows, "device": str(device()), "dtype": str(dtype)})
                del lm, method
                gc.collect()
    show(rows)


def _batch(text: str) -> tuple[int, int]:
    samples, length = text.split("x")
    return int(samples), int(length)


def _saved(shape: str, batch: tuple[int, int], dropout: float) -> dict[str, Any]:
    """A row of `--saved`, in GiB: two depths counted, all layers on a straight line."""
    counted = []
    samples, length = batch
    layers = SHAPES[shape].num_hidden_layers
    for depth in (2, 4):
        settings = copy.deepcopy(SHAPES[shape])
        settings.num_hidden_layers = depth
        settings.architectures = [f"{type(settings).__name__.removesuffix('Config')}ForCausalLM"]
        with tempfile.TemporaryDirectory() as folder:
            settings.save_pretrained(folder)
            config = _config(folder, _ANIT, r=16, dropout=dropout)
            made = Workload([made_up(n, length) for n in range(samples)]).micro_batch(config, samples)
            kept = _Kept()
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
                peaks = footprint(config, made, torch.bfloat16).peaks
        counted.append({"attack": peaks["attack"], "training": peaks["training"], "saved": kept.most})
    few, many = counted
    full = {name: (few[name] + (many[name] - few[name]) * (layers - 2) / 2) / 2**30 for name in few}
    return {"shape": shape, "size": f"{samples} x {length}", "dropout": dropout, **full}


class _Kept:
    """Bytes of the tensors that autograd keeps at one time, each storage once; weights are not among them."""

    def __init__(self) -> None:
        self.most, self._alive, self._storages = 0, 0, set[int]()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter) and storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self._alive += storage.nbytes()
            self.most = max(self.most, self._alive)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return tensor

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._alive -= size


def _config(folder: str, method: dict[str, Any], *, r: int = 8, dropout: float = 0.0) -> Config:
    return validate(
        {
            "model": {"name_or_path": folder, "dtype": "float32"},
            "data": {"dataset": "sst2", "path": folder},
            "prompt": {"order": "instruction_last"},
            "lora": {"r": r, "dropout": dropout},
            "method": method,
            "out": folder,
        },
        source="benchmark",
    )


def _model(config: Config, settings: transformers.PretrainedConfig, dtype: torch.dtype) -> PerturbableLM:
    torch.manual_seed(0)
    with device():
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype).requires_grad_(False)
    return perturbable(make_trainable(model, config).to(device()).train(), config)


def _measured(method: Method, lm: PerturbableLM, batch: Batch, steps: int) -> dict[str, float]:
    """The peak in MiB, and on a GPU the median seconds, of a step's forward and backward passes."""
    batches = [lm.prepare(batch).to(device()) for _ in range(2 if isinstance(method, PipelinedNRM) else 1)]
    batches += [dataclasses.replace(batches[0], step=replay) for replay in range(1, method.replays)]

    def step() -> None:
        for now, after in zip(batches, [*batches[1:], None], strict=True):
            method.foresee(after)
            method.backward(lm, now)

    step()  # gradients are there from now on, as in a step of several micro-batches; kernels are compiled
    measured = {"measured_mb": min(peak_mb_of(step) for _ in range(steps))}
    if on_gpu():
        measured["seconds"] = statistics.median(time_of(step).wall for _ in range(steps))
    return measured


if __name__ == "__main__":
    main()
