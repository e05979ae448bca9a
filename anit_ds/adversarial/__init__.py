"""Adversarial methods on the input embeddings. Each is one small class with one interface: `Method`.

The trainer knows one thing: a method turns a batch into a loss that has been backpropagated. The same objects work in a
plain PyTorch loop:

    lm = PerturbableLM(model)
    method = NRM(alpha=0.05 * embedding_scale(model), start=0.0, ball="none", gradient="clean")
    stats = method.backward(lm, Batch.from_labels(input_ids, attention_mask, labels, step=step))

Names are imported when they are first asked for: reading a configuration needs `adversarial.rules`, and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anit_ds.adversarial.batch import Batch
    from anit_ds.adversarial.method import build_method
    from anit_ds.adversarial.methods.alternating import AlternatingNRM
    from anit_ds.adversarial.methods.base import Method
    from anit_ds.adversarial.methods.nrm import NRM
    from anit_ds.adversarial.methods.pipelined import PipelinedNRM
    from anit_ds.adversarial.methods.sft import SFT
    from anit_ds.adversarial.perturb import PerturbableLM, embedding_scale
    from anit_ds.adversarial.prefix_tree import PrefixTreeLM
    from anit_ds.adversarial.rehearsal import rehearse
    from anit_ds.adversarial.stats import StepStats

_WHERE = {
    "NRM": "methods.nrm", "AlternatingNRM": "methods.alternating", "PipelinedNRM": "methods.pipelined",
    "SFT": "methods.sft",
    "Method": "methods.base", "build_method": "method",
    "PerturbableLM": "perturb", "embedding_scale": "perturb", "PrefixTreeLM": "prefix_tree",
    "rehearse": "rehearsal",
    "Batch": "batch", "StepStats": "stats",
}  # fmt: skip

__all__ = [
    "NRM",
    "SFT",
    "AlternatingNRM",
    "Batch",
    "Method",
    "PerturbableLM",
    "PipelinedNRM",
    "PrefixTreeLM",
    "StepStats",
    "build_method",
    "embedding_scale",
    "rehearse",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
