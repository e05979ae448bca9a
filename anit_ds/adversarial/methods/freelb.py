"""`freelb`: the mean over K ascent steps of the parameter gradient at each delta, without a clean term; K passes.

Zhu et al., ICLR 2020, algorithm 1: one backward gives the parameters' gradient and delta's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, moved, project
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.methods.delta import perturbed_start
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class FreeLB(Method):
    """eps: largest norm of a sample's delta, 0 for none (their max_norm); alpha: step (adv_lr); steps: K.

    init_norm: the random start is U(-1, 1) * init_norm / sqrt(N) (their init_mag), drawn by NRM's counter-based
    generator.
    """

    def __init__(self, *, eps: float, alpha: float, steps: int, init_norm: float = 0.0, seed: int = 42) -> None:
        self.eps, self.alpha, self.steps, self.init_norm, self.seed = eps, alpha, steps, init_norm, seed

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(
            eps=config.eps * unit, alpha=config.alpha * unit, steps=config.steps, init_norm=config.init_norm, seed=seed
        )

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        delta: Tensor | None = None
        stats = StepStats()
        for step in range(self.steps):

            def point(e: Tensor, delta: Tensor | None = delta) -> Tensor:
                return moved(e, self._start(e, batch) if delta is None else delta)

            e, g, loss, _ = lm.trained_input_gradient(batch, point, weight=1 / self.steps, last=step == self.steps - 1)
            if delta is None:
                delta = self._start(e, batch)
            delta = delta + self.alpha * direction(g, batch)
            delta = project(delta, self.eps, "frobenius" if self.eps > 0 else "none", batch)
            stats.merge(StepStats.of(batch, adversarial=loss))
        stats.merge(StepStats.of(batch, delta=delta))
        return stats

    def _start(self, e: Tensor, batch: Batch) -> Tensor:
        # delta0 of eq. 7 with eps = init_norm / 10 and beta = 0 is U(-1, 1) * init_norm / sqrt(N).
        zeros, no_beta = torch.zeros_like(e, dtype=torch.float32), torch.zeros_like(batch.beta)
        return perturbed_start(zeros, batch, seed=self.seed, eps=self.init_norm / 10, beta=no_beta)
