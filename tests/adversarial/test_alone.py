"""NRM in a loop of one's own and its mix-in need torch and transformers, and nothing else that a training needs."""

from __future__ import annotations

import subprocess
import sys

LOOP = """
import sys
for name in ("accelerate", "click", "datasets", "deepspeed", "matplotlib", "openai", "orjson", "peft", "pydantic",
             "rapidfuzz", "tensorboard", "triton", "trl"):
    sys.modules[name] = None
import torch
from anit_ds.adversarial import *
from anit_ds.adversarial.hf_trainer import AdversarialTrainerMixin
from anit_ds.tiny import tiny_model

model, ids = tiny_model(), torch.arange(2, 26).view(2, 12)
labels = ids.masked_fill(torch.arange(12) < 8, -100)
batch = Batch.from_labels(ids, torch.ones_like(ids), labels, beta=0.3)
lm = PrefixTreeLM(model)
stats = NRM(eps=1.0, alpha=0.3, ball="linf").backward(lm, lm.prepare(batch))
print(any(p.grad.any() for p in model.parameters()), "loss/adversarial" in dict(stats.items()))
"""


def test_the_methods_need_torch_and_transformers_alone() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True True\n"
