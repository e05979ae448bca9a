"""What `anit plan` says of a step's memory beside what a step takes: predicted and measured peak, method by method.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 OMP_NUM_THREADS=1 \
      python benchmarks/forecast.py --json results/plan/memory.json

Predicted is `anit_ds.planning.footprint`, which runs nothing; measured is the peak of resident memory above what was
held before the step (or of the GPU's allocator), the least of three steps. Both are above weights and gradients. On a
CPU the C library has to hand freed memory back at once, or the peak has in it what it kept. The model is a random
Llama, wide enough for activations to outweigh what a process takes for itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import peak_mb_of, show, write_json

from anit_ds.adversarial import PerturbableLM, build_method
from anit_ds.adversarial.prefix_tree import PrefixTreeLM
from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.modeling import add_adapter
from anit_ds.planning.footprint import footprint
from anit_ds.planning.workload import Workload, made_up

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
SIZES = {"4 x 64": (4, 64), "8 x 128": (8, 128), "8 x 256": (8, 256)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=asked.layers, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=8192, tie_word_embeddings=True,
        )  # fmt: skip
        settings.architectures = ["LlamaForCausalLM"]
        settings.save_pretrained(folder)
        for mode, method in ((mode, MODES[mode]) for mode in asked.modes):
            for size, (samples, length) in SIZES.items():
                config = _config(folder, method)
                made = [made_up(number, length) for number in range(samples)]
                batch = Workload(made, length, known=False).micro_batch(config, samples)
                predicted = footprint(config, batch, torch.float32).peak / 2**20
                measured = _measured(config, settings, batch)
                rows.append(
                    {
                        "mode": mode,
                        "size": size,
                        "predicted_mb": predicted,
                        "measured_mb": measured,
                        "ratio": predicted / measured,
                    }
                )
                print(rows[-1], flush=True)
    show(rows)
    if asked.json:
        write_json(asked.json, {"rows": rows, "layers": asked.layers})


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


def _measured(config: Config, settings: Any, batch: Any) -> float:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).requires_grad_(False)
    model = add_adapter(model, config).train()
    tree = config.method.schedule == "prefix_tree"
    lm = PrefixTreeLM(model, keeps_trunk=config.attacks_behind_context) if tree else PerturbableLM(model)
    if not tree:
        lm.spare_masks()
    method = build_method(config.method, seed=1, scale=1.0, total_steps=1)
    method.attach(lm)
    prepared = lm.prepare(batch)

    def step() -> None:
        method.foresee(None)
        method.backward(lm, prepared)

    step()  # gradients are there from now on, as in a step of several micro-batches
    return min(peak_mb_of(step) for _ in range(3))


if __name__ == "__main__":
    main()
