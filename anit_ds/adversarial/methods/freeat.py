"""`freeat`: each minibatch is stepped on m times in a row, and one backward gives both gradients; 1 pass a step.

Shafahi et al., NeurIPS 2019, on embeddings: replay r moves the weights by the gradient at delta_r, and the same
backward's gradient of the embeddings makes delta_{r+1}. The trainer divides the epochs by m, so that the number of
optimizer steps is every other method's. Ours: delta starts at 0 with each minibatch (texts differ in length, so theirs
cannot be carried to the next one), and a step is Frobenius-normalised per sample, as in `pgd`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, moved, project
from anit_ds.adversarial.methods.base import Method, check_choices
from anit_ds.adversarial.methods.replays import Carried
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class FreeAT(Method):
    """eps, alpha: radius and step in the units of the embeddings; replays: m."""

    def __init__(self, *, eps: float, alpha: float, replays: int, ball: str = "frobenius") -> None:
        check_choices(ball=ball)
        self.eps, self.alpha, self.replays, self.ball = eps, alpha, replays, ball
        self._deltas = Carried(replays)

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(eps=config.eps * unit, alpha=config.alpha * unit, replays=config.steps, ball=config.ball)

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        before = self._deltas.take(batch)
        carried = before[0] if before else None
        _, g, adversarial, _ = lm.trained_input_gradient(
            batch, lambda e: e.clone() if carried is None else moved(e, carried), last=True
        )
        delta = torch.zeros_like(g, dtype=torch.float32) if carried is None else carried
        self._deltas.keep(project(delta + self.alpha * direction(g, batch), self.eps, self.ball, batch))
        return StepStats.of(batch, adversarial=adversarial, delta=delta)
