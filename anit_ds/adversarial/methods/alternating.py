"""`method.updates: alternating`: NRM with an optimizer step for each of eq. 8's losses, on the same minibatch (ours).

    step 2i        L(e)                     whose backward gives g, the gradient at e
    step 2i + 1    lambda * L(e + delta1)   delta1 from that g, eq. 5

One pass a step, so the two passes that `gradient: clean` spends on one step make two. Free adversarial training
(Shafahi et al., NeurIPS 2019) steps on a minibatch several times in a row too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.methods.replays import Carried
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats
from anit_kernels import Ball, NrmStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class AlternatingNRM(NRM):
    """NRM whose g is one optimizer step old; arguments as NRM's."""

    replays = 2

    def __init__(
        self, *, eps: float = 1.0, alpha: float = 1e-3, lambda_: float = 1.0, ball: Ball = "frobenius",
        step: Literal["frobenius", "sign"] = "frobenius", start: float = 1.0, seed: int = 42,
    ) -> None:  # fmt: skip
        super().__init__(eps=eps, alpha=alpha, lambda_=lambda_, ball=ball, step=step, start=start, seed=seed)
        self._gradients = Carried(self.replays)

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(
            eps=config.eps * unit, alpha=config.alpha * unit, lambda_=config.lambda_, ball=config.ball,
            step=config.step, start=config.start, seed=seed,
        )  # fmt: skip

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        """One micro-batch of the term of eq. 8 whose turn it is, backpropagated."""
        before = self._gradients.take(batch)
        if before is None:
            _, g, clean = lm.trained_input_gradient(batch, last=True)
            self._gradients.keep(g)
            return StepStats.of(batch, clean=clean)
        step = _Step(self, before, batch)
        (adversarial,) = lm.losses(batch, (step,))
        lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
        return self._stats(lm, batch, {"adversarial": adversarial}, step.e, step.stats)


class _Step:
    """From e to e + delta1 along a g that is known; keeps both sides, as `AttackPoint` does."""

    e: Tensor
    stats: NrmStats

    def __init__(self, nrm: AlternatingNRM, g: Tensor, batch: Batch) -> None:
        self._nrm, self._g, self._batch = nrm, g, batch

    def __call__(self, e: Tensor) -> Tensor:
        x1, self.stats = self._nrm._step(self._g, e, self._batch)
        self.e = e
        return x1
