"""`pgd`: eq. 5 and 6 repeated K times from delta = 0, and the loss at the last delta only; K + 1 passes.

Madry et al., ICLR 2018, on embeddings, with per-sample Frobenius-normalised steps.
"""

from __future__ import annotations

import torch

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, project
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats


class PGD:
    """eps, alpha: radius and step in the units of the embeddings; steps: K."""

    def __init__(self, *, eps: float, alpha: float, steps: int, ball: str = "frobenius") -> None:
        self.eps, self.alpha, self.steps, self.ball = eps, alpha, steps, ball
        self.passes = steps + 1

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        e = lm.embeddings(batch).float()
        delta = torch.zeros_like(e)
        for _ in range(self.steps):
            at = e + delta
            _, _, g = lm.input_gradient(batch, lambda e, at=at: at.to(e.dtype))  # type: ignore[misc]
            delta = project(delta + self.alpha * direction(g, batch), self.eps, self.ball, batch)
        dtype = g.dtype
        (adversarial,) = lm.losses(batch, ((e + delta).to(dtype),))
        lm.backward(adversarial.sum() / batch.mean_over)
        stats = StepStats()
        stats.over_answers("loss/adversarial", adversarial, batch)
        stats.over_samples("nrm/delta1_norm", batch.norm_per_sample(delta), batch.attacked)
        return stats
