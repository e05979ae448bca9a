"""`freeat`: each minibatch is stepped on m times in a row, and one backward gives both gradients; 1 pass a step.

Shafahi et al., NeurIPS 2019, on embeddings: replay r moves the weights by the gradient at delta_r, and the same
backward's gradient of the embeddings makes delta_{r+1}. The trainer divides the epochs by m, so that the number of
optimizer steps is every other method's. Ours: delta starts at 0 with each minibatch (texts differ in length, so theirs
cannot be carried to the next one), and a step is Frobenius-normalised per sample, as in `pgd`.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import direction, project
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats


class FreeAT:
    """eps, alpha: radius and step in the units of the embeddings; replays: m.

    Replay number batch.step % m of a minibatch expects its micro-batches in the order of the replay before.
    """

    passes = 1

    def __init__(self, *, eps: float, alpha: float, replays: int, ball: str = "frobenius") -> None:
        self.eps, self.alpha, self.replays, self.ball = eps, alpha, replays, ball
        self._carried: deque[Tensor] = deque()  # the deltas of this step's micro-batches, first in first out
        self._step = -1

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        e = lm.embeddings(batch)
        delta = self._delta_for(batch, e)
        x = (e.float() + delta).to(e.dtype).requires_grad_(True)
        (adversarial,) = lm.losses(batch, (x,))
        lm.backward(adversarial.sum() / batch.mean_over)
        assert x.grad is not None
        following = project(delta + self.alpha * direction(x.grad, batch), self.eps, self.ball, batch)
        self._carried.append(following)
        stats = StepStats()
        stats.over_answers("loss/adversarial", adversarial, batch)
        stats.over_samples("nrm/delta1_norm", batch.norm_per_sample(delta), batch.attacked)
        return stats

    def _delta_for(self, batch: Batch, e: Tensor) -> Tensor:
        if batch.step % self.replays:
            return self._carried.popleft()
        if batch.step != self._step:  # a new minibatch: what its predecessor left is of no use
            self._carried.clear()
            self._step = batch.step
        return torch.zeros_like(e, dtype=torch.float32)
