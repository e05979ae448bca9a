"""Methods that add noise and take no gradient for it.

neftune   L(e + u), u = U(-1, 1) * a / sqrt(T * D)     Jain et al., ICLR 2024; one pass
random    L(e) + lambda L(e + Proj(delta0))            ANIT without its gradient: shows whether the
                                                       attack matters; two
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.methods.delta import perturbed_start
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats
from anit_kernels import NrmStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class NEFTune(Method):
    """alpha: their a. T counts a sample's real tokens, so padding does not weaken the noise (for full rows: as
    theirs)."""

    def __init__(self, *, alpha: float = 5.0, seed: int = 42) -> None:
        self.alpha, self.seed = alpha, seed

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(alpha=config.neftune_alpha, seed=seed)

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        if getattr(batch, "trunk", None) is not None:
            raise ValueError(
                "NEFTune perturbs every token, and a trunk stays clean: PrefixTreeLM(model, keeps_trunk=False)"
            )
        # delta0 of eq. 7 with eps = alpha / 10, beta = 0 and every real token in scope.
        (loss,) = lm.losses(batch, (
            partial(
                perturbed_start, batch=batch, seed=self.seed, eps=self.alpha / 10, beta=torch.zeros_like(batch.beta),
                scope=batch.attended,
            ),
        ))  # fmt: skip
        lm.backward(loss.sum() / batch.mean_over)
        return StepStats.of(batch, adversarial=loss)


class RandomStart(NRM):
    """NRM with delta1 = Proj(delta0): the same start, ball, scope and passes over rows, and no attack."""

    def __init__(
        self, *, eps: float, lambda_: float, ball: Literal["frobenius", "linf", "none"], seed: int,
        passes: Literal["joined", "separate"], start: float = 1.0, loss: Literal["ce", "consistency"] = "ce",
    ) -> None:  # fmt: skip
        super().__init__(
            eps=eps, alpha=0.0, lambda_=lambda_, ball=ball, start=start, loss=loss, seed=seed, passes=passes
        )

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(
            eps=config.eps * unit, lambda_=config.lambda_, ball=config.ball, start=config.start, loss=config.loss,
            seed=seed, passes=config.passes,
        )  # fmt: skip

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        made: list[tuple[Tensor, NrmStats]] = []

        def projected_start(e: Tensor) -> Tensor:
            x1, nrm = self._step(torch.zeros_like(e), e, batch)
            made.append((e, nrm))
            return x1

        losses = self._train(lm, batch, projected_start)
        ((e, nrm),) = made
        return self._stats(batch, losses, e, nrm)
