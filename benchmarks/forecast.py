"""What `anit plan` says of a step's memory beside what a step takes: predicted and measured peak, method by method.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 OMP_NUM_THREADS=1 \
      python benchmarks/forecast.py --json results/plan/memory.json
    python benchmarks/forecast.py --shape llama-3-8b gemma-2b --batch 4x512 --modes sft anit     # on a GPU

Predicted is `anit_ds.planning.footprint`, which runs nothing; measured is the peak of resident memory above what was
held before the step (or of the GPU's allocator), the least of three steps. Both are above weights and gradients. On a
CPU the C library has to hand freed memory back at once, or the peak has in it what it kept. Models are random: `small`
is wide enough for activations to outweigh what a process takes for itself, the others have their namesakes' shape and
are made on the GPU, in bfloat16. `seconds` is the median of as many steps more.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import peak_mb_of, show, time_of, write_json

from anit_ds.adversarial import Batch, PerturbableLM, build_method
from anit_ds.adversarial.prefix_tree import PrefixTreeLM
from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.modeling import make_trainable
from anit_ds.planning.footprint import footprint
from anit_ds.planning.workload import Workload, made_up
from anit_ds.ranks.device import device, on_gpu

_TREE = {"tokens": "instruction", "schedule": "prefix_tree"}
MODES: dict[str, dict[str, Any]] = {
    "sft": {"name": "noisy_sft"},
    "sft, tree": {"name": "noisy_sft", "schedule": "prefix_tree"},
    "neftune": {"name": "neftune"},
    "anit": {"name": "anit"},
    "anit, separate": {"name": "anit", "passes": "separate"},
    "anit, clean": {"name": "anit", "gradient": "clean"},
    "anit, pipelined": {"name": "anit", "schedule": "pipelined"},
    "anit, tree": {"name": "anit", **_TREE},
    "anit, clean, tree": {"name": "anit", "gradient": "clean", **_TREE},
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
    "gemma-2b": transformers.GemmaConfig(
        hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1,
        head_dim=256, vocab_size=256000,
    ),
}  # fmt: skip
_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["small"])
    parser.add_argument("--batch", nargs="+", type=_batch, default=[(4, 64), (8, 128), (8, 256)], metavar="BxT",
                        help="samples x tokens of each")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
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
                for samples, length in asked.batch:
                    made = [made_up(number, length) for number in range(samples)]
                    batch = Workload(made, length, known=False).micro_batch(config, samples)
                    predicted = footprint(config, batch, dtype).peak / 2**20
                    measured, seconds = _measured(config, lm, batch)
                    row = {"shape": shape, "mode": mode, "size": f"{samples} x {length}", "predicted_mb": predicted}
                    row |= {"measured_mb": measured, "ratio": predicted / measured, "seconds": seconds}
                    rows.append(row)
                    print(row, flush=True)
                    if asked.json:
                        write_json(asked.json, {"rows": rows, "device": str(device()), "dtype": str(dtype)})
                del lm
                gc.collect()
    show(rows)


def _batch(text: str) -> tuple[int, int]:
    samples, length = text.split("x")
    return int(samples), int(length)


def _config(folder: str, method: dict[str, Any]) -> Config:
    return validate(
        {
            "model": {"name_or_path": folder, "dtype": "float32"},
            "data": {"dataset": "sst2", "path": folder},
            "prompt": {"order": "instruction_last"},
            "lora": {"r": 8, "dropout": 0.0},
            "method": method,
            "out": folder,
        },
        source="benchmark",
    )


def _model(config: Config, settings: transformers.PretrainedConfig, dtype: torch.dtype) -> PerturbableLM:
    torch.manual_seed(0)
    with device():
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype).requires_grad_(False)
    model = make_trainable(model, config).to(device()).train()
    if config.method.schedule == "prefix_tree":
        return PrefixTreeLM(model, keeps_trunk=config.attacks_behind_context)
    lm = PerturbableLM(model)
    lm.spare_masks()
    return lm


def _measured(config: Config, lm: PerturbableLM, batch: Batch) -> tuple[float, float]:
    """(peak in MiB, median seconds) of a micro-batch, forward and backward."""
    method = build_method(config.method, seed=1, scale=1.0, total_steps=1)
    method.attach(lm)
    prepared = lm.prepare(batch.to(device()))

    def step() -> None:
        method.foresee(None)
        method.backward(lm, prepared)

    step()  # gradients are there from now on, as in a step of several micro-batches; kernels are compiled
    peak = min(peak_mb_of(step) for _ in range(_STEPS))
    return peak, statistics.median(time_of(step).wall for _ in range(_STEPS))


if __name__ == "__main__":
    main()
