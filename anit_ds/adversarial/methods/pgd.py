"""`pgd`: eq. 5 and 6 repeated K times from delta = 0, and the loss at the last delta only; K + 1 passes.

Madry et al., ICLR 2018, on embeddings, with per-sample Frobenius-normalised steps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, moved, project
from anit_ds.adversarial.methods.base import Method, check_choices
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class PGD(Method):
    """eps, alpha: radius and step in the units of the embeddings; steps: K."""

    def __init__(self, *, eps: float, alpha: float, steps: int, ball: str = "frobenius") -> None:
        check_choices(ball=ball)
        if steps < 1:
            raise ValueError(f"steps: {steps} makes no step; at least 1")
        self.eps, self.alpha, self.steps, self.ball = eps, alpha, steps, ball

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(eps=config.eps * unit, alpha=config.alpha * unit, steps=config.steps, ball=config.ball)

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        _, _, g = lm.input_gradient(batch)
        delta = self._ascended(torch.zeros_like(g, dtype=torch.float32), g, batch)
        for _ in range(self.steps - 1):
            _, _, g = lm.input_gradient(batch, partial(moved, delta=delta))
            delta = self._ascended(delta, g, batch)
        (adversarial,) = lm.losses(batch, (partial(moved, delta=delta),))
        lm.backward(adversarial.sum() / batch.mean_over)
        return StepStats.of(batch, adversarial=adversarial, delta=delta)

    def _ascended(self, delta: Tensor, g: Tensor, batch: Batch) -> Tensor:
        return project(delta + self.alpha * direction(g, batch), self.eps, self.ball, batch)
