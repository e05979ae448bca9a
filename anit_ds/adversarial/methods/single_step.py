"""`fgsm` and `fgm`: one step from delta = 0 along the gradient that the clean pass gives for free; two passes.

fgsm   L(e) + lambda L(e + eps * sign g)        Goodfellow et al., ICLR 2015
fgm    L(e) + lambda L(e + eps * g / ||g||)     Miyato et al., ICLR 2017, per sample over the tokens in scope
"""

from __future__ import annotations

from typing import Literal

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats


class SingleStep:
    """`step` is "sign" (fgsm) or "norm" (fgm); eps in the units of the embeddings."""

    passes = 2

    def __init__(self, *, eps: float, lambda_: float = 1.0, step: Literal["sign", "norm"]) -> None:
        self.eps, self.lambda_, self.step = eps, lambda_, step

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        x = lm.embeddings(batch).clone().requires_grad_(True)
        (clean,) = lm.losses(batch, (x,))
        lm.backward(clean.sum() / batch.mean_over, last=False)
        assert x.grad is not None
        way = direction(x.grad, batch)
        delta = self.eps * (way.sign() if self.step == "sign" else way)
        perturbed = (x.detach().float() + delta).to(x.dtype)
        (adversarial,) = lm.losses(batch, (perturbed,))
        lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
        stats = StepStats()
        stats.over_answers("loss/clean", clean, batch)
        stats.over_answers("loss/adversarial", adversarial, batch)
        stats.over_samples("nrm/delta1_norm", batch.norm_per_sample(delta), batch.attacked)
        return stats
