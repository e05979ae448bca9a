"""`fgsm` and `fgm`: one step from delta = 0 along the gradient that the clean pass gives for free; two passes.

fgsm   L(e) + lambda L(e + eps * sign g)        Goodfellow et al., ICLR 2015
fgm    L(e) + lambda L(e + eps * g / ||g||)     Miyato et al., ICLR 2017, per sample over the tokens in scope
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, moved
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class SingleStep(Method):
    """`step` is "sign" (fgsm) or "norm" (fgm); eps in the units of the embeddings."""

    def __init__(self, *, eps: float, lambda_: float = 1.0, step: Literal["sign", "norm"]) -> None:
        self.eps, self.lambda_, self.step = eps, lambda_, step

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(eps=config.eps * unit, lambda_=config.lambda_, step="sign" if config.name == "fgsm" else "norm")

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        e, g, clean, _ = lm.trained_input_gradient(batch, last=False)
        way = direction(g, batch)
        delta = self.eps * (way.sign() if self.step == "sign" else way)
        (adversarial,) = lm.losses(batch, (moved(e, delta),))
        lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
        return StepStats.of(batch, clean=clean, adversarial=adversarial, delta=delta)
