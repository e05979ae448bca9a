"""Adversarial methods on the input embeddings. Each is one small class with one interface: `Method`.

The trainer knows one thing: a method turns a batch into a loss that has been backpropagated. The same objects work in a
plain PyTorch loop:

    lm = PerturbableLM(model)
    method = NRM(eps=1.0, alpha=0.3, ball="linf")
    stats = method.backward(lm, Batch.from_labels(input_ids, attention_mask, labels, beta=0.3, step=step))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.freeat import FreeAT
from anit_ds.adversarial.methods.freelb import FreeLB
from anit_ds.adversarial.methods.noise_only import NEFTune, RandomStart
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.methods.pgd import PGD
from anit_ds.adversarial.methods.pipelined import PipelinedNRM
from anit_ds.adversarial.methods.sft import SFT
from anit_ds.adversarial.methods.single_step import SingleStep
from anit_ds.adversarial.perturb import PerturbableLM, embedding_scale
from anit_ds.adversarial.shared_prefix import SharedPrefixLM
from anit_ds.adversarial.stats import StepStats
from anit_ds.config import MethodConfig

__all__ = [
    "NRM",
    "SFT",
    "Batch",
    "Method",
    "PerturbableLM",
    "PipelinedNRM",
    "SharedPrefixLM",
    "StepStats",
    "build_method",
    "embedding_scale",
]


class Method(Protocol):
    """A way of training: `passes` forward-and-backward passes over a batch end with gradients in place."""

    passes: int

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats: ...


def build_method(config: MethodConfig, *, seed: int, scale: float) -> Method:
    """The method a configuration names. `scale` is `embedding_scale(model)`, used where `eps_unit: relative` asks for
    it."""
    unit = scale if config.eps_unit == "relative" else 1.0
    eps, alpha = config.eps * unit, config.alpha * unit
    if config.schedule == "pipelined":
        return PipelinedNRM(eps=eps, alpha=alpha, lambda_=config.lambda_, ball=config.ball, seed=seed)
    builders: dict[str, Callable[[], Method]] = {
        "sft": SFT,
        "noisy_sft": SFT,
        "neftune": lambda: NEFTune(alpha=config.neftune_alpha, seed=seed),
        "random": lambda: RandomStart(
            eps=eps, lambda_=config.lambda_, ball=config.ball, seed=seed, passes=config.passes
        ),
        "fgsm": lambda: SingleStep(eps=eps, lambda_=config.lambda_, step="sign"),
        "fgm": lambda: SingleStep(eps=eps, lambda_=config.lambda_, step="norm"),
        "pgd": lambda: PGD(eps=eps, alpha=alpha, steps=config.steps, ball=config.ball),
        "freelb": lambda: FreeLB(eps=eps, alpha=alpha, steps=config.steps, init_norm=config.init_norm, seed=seed),
        "freeat": lambda: FreeAT(eps=eps, alpha=alpha, replays=config.steps, ball=config.ball),
        "anit": lambda: NRM(
            eps=eps,
            alpha=alpha,
            lambda_=config.lambda_,
            ball=config.ball,
            seed=seed,
            passes=config.passes,
            gradient=config.gradient,
        ),
    }
    return builders[config.name]()
