"""NRM, the Noise Response Method: a two-step attack on the input embeddings whose strength answers to the noise.

    delta0 = m * (10 / sqrt(N)) * U(-eps, eps) * (1 - beta)          eq. 7: a random start, weaker where noise bent more
                                                                     (times `start`, which is 1 in the paper)
    g      = d L(e + delta0) / d delta0                              an attack pass
    delta1 = Proj_eps(delta0 + alpha * g / ||g||_F)                  eq. 5, 6: one step, projected
                                                                     (`step: sign`: along sign(g), see signed.py)
    loss   = L(e) + lambda * L(e + delta1)                           eq. 8; delta1 is a constant here
                                                                     (`loss: consistency`: how far p(e) and
                                                                     p(e + delta1) are apart in place of L(e + delta1))

Section 4 of docs/method.md gives every symbol, and which choices are ours, not the paper's (per-sample norms over the
tokens in scope, the guard against gradients that are not finite, `gradient: clean`). delta's life is in `anit_kernels`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from anit_ds.adversarial.answers import answer_losses, divergence
from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.base import Method, check_choices
from anit_ds.adversarial.methods.delta import perturbed_start, perturbed_step
from anit_ds.adversarial.methods.signed import signed_step
from anit_ds.adversarial.perturb import Input, PerturbableLM
from anit_ds.adversarial.stats import StepStats
from anit_kernels import Ball, NrmStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class NRM(Method):
    """The method `anit`: three passes, two with `gradient="clean"`.

    eps, alpha: radius and step in the units of the embeddings (multiply by `embedding_scale(model)` for relative ones).
    step: "frobenius" goes along g / ||g||_F, "sign" along sign(g), where alpha is an element's step (ours).
    start: delta0 is this share of eq. 7's; 0 for no random start (ours).
    loss: "ce" is eq. 8's; "consistency" (ours) takes `answers.divergence` for its second term, and needs joined passes
        and `gradient="attack"`.
    seed: 64-bit; delta0 is a pure function of (seed, batch.step, sample id, element).
    passes: "joined" runs clean and adversarial rows in one forward, "separate" one after the other in half the memory.
    gradient: "attack" takes g at delta0; "clean" (ours) at delta = 0, where the clean pass gives it for free.
    Raises ValueError for a setting that is none of these.
    Source: ANIT (AAAI 2025), section 3.3 and algorithm 1, as settled in docs/method.md section 4.
    """

    def __init__(
        self,
        *,
        eps: float = 1.0,
        alpha: float = 1e-3,
        lambda_: float = 1.0,
        ball: Ball = "frobenius",
        step: Literal["frobenius", "sign"] = "frobenius",
        start: float = 1.0,
        loss: Literal["ce", "consistency"] = "ce",
        seed: int = 42,
        passes: Literal["joined", "separate"] = "joined",
        gradient: Literal["attack", "clean"] = "attack",
    ) -> None:
        check_choices(ball=ball, step=step, loss=loss, passes=passes, gradient=gradient)
        if not (eps >= 0 and 0 <= start <= 1):
            raise ValueError(f"eps: {eps} and start: {start}; a radius is not negative, a share from 0 to 1")
        if loss == "consistency" and (passes, gradient) != ("joined", "attack"):
            raise ValueError(
                "loss: consistency compares rows of one pass, so it needs passes joined and gradient attack"
            )
        self.eps, self.alpha, self.lambda_, self.ball, self.seed = eps, alpha, lambda_, ball, seed
        self.step, self.start, self.loss = step, start, loss
        self.joined = passes == "joined"
        self.gradient = gradient

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls(
            eps=config.eps * unit, alpha=config.alpha * unit, lambda_=config.lambda_, ball=config.ball,
            step=config.step, start=config.start, loss=config.loss, seed=seed, passes=config.passes,
            gradient=config.gradient,
        )  # fmt: skip

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        """One micro-batch of eq. 8, backpropagated; the statistics name every quantity above."""
        scale: Tensor | float
        if self.gradient == "clean":
            e, g, clean, scale = lm.trained_input_gradient(batch, last=False)
            x1, nrm = self._step(g, e, batch)
            (adversarial,) = lm.losses(batch, (x1,))
            lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
            losses = {"clean": clean, "adversarial": adversarial}
        else:
            e, _, g = lm.input_gradient(batch, lambda e: self._start(e, batch))
            x1, nrm = self._step(g, e, batch)
            losses, scale = self._train(lm, batch, x1), lm.attack_scale(e)
        return self._stats(batch, losses, e, nrm, scale)

    def _stats(
        self, batch: Batch, losses: dict[str, Tensor], e: Tensor, nrm: NrmStats, grad_scale: Tensor | float = 1.0
    ) -> StepStats:
        stats = StepStats.of(batch, **losses)
        describe_attack(stats, nrm, e, batch, grad_scale=grad_scale)
        return stats

    def _start(self, e: Tensor, batch: Batch) -> Tensor:
        return perturbed_start(e, batch, seed=self.seed, eps=self.eps, beta=self._beta(batch))

    def _step(self, g: Tensor, e: Tensor, batch: Batch) -> tuple[Tensor, NrmStats]:
        if self.step == "sign":
            zeros = torch.zeros_like(e, dtype=torch.float32)
            delta0 = self._start(zeros, batch) if self.start else zeros
            return signed_step(g, e, batch, delta0, eps=self.eps, alpha=self.alpha, ball=self.ball)
        return perturbed_step(
            g, e, batch, seed=self.seed, eps=self.eps, alpha=self.alpha, ball=self.ball, beta=self._beta(batch)
        )

    def _beta(self, batch: Batch) -> Tensor:
        """[S] the beta at which eq. 7 gives `start` times delta0: the kernels know one factor, 1 - beta."""
        return batch.beta if self.start == 1 else 1 - self.start * (1 - batch.beta)

    def _train(self, lm: PerturbableLM, batch: Batch, x1: Input) -> dict[str, Tensor]:
        """Eq. 8, backpropagated. Returns each sample's summed losses [S] by the names of `StepStats.of`."""
        if self.loss == "consistency":
            return self._train_to_agree(lm, batch, x1)
        if self.joined:
            clean, adversarial = lm.losses(batch, (None, x1))
            lm.backward((clean.sum() + self.lambda_ * adversarial.sum()) / batch.mean_over)
            return {"clean": clean, "adversarial": adversarial}
        (clean,) = lm.losses(batch)
        lm.backward(clean.sum() / batch.mean_over, last=False)
        (adversarial,) = lm.losses(batch, (x1,))
        lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
        return {"clean": clean, "adversarial": adversarial}

    def _train_to_agree(self, lm: PerturbableLM, batch: Batch, x1: Input) -> dict[str, Tensor]:
        p, q = lm.logits(batch, (None, x1))
        (clean,), apart = answer_losses(p, [batch]), divergence(p, q, batch)
        lm.backward((clean.sum() + self.lambda_ * apart.sum()) / batch.mean_over)
        (adversarial,) = answer_losses(q.detach(), [batch])
        return {"clean": clean, "adversarial": adversarial, "consistency": apart}


def describe_attack(
    stats: StepStats, nrm: NrmStats, e: Tensor, batch: Batch, *, grad_scale: Tensor | float = 1.0
) -> None:
    """Norms, clipping and direction of an attack as `nrm/...` statistics, means over the samples with tokens in scope.

    nrm/cosine is the cosine of delta1 and g: how much of the perturbation is the attack and not the random start.
    nrm/grad_norm is of a sample's summed loss, `grad_scale` what g is multiplied by beside that.
    nrm/delta_to_embedding is ||delta1|| / ||e||, both over the tokens in scope. nrm/nonfinite is a share of samples.
    """
    attacked = batch.attacked
    finite = attacked & nrm.finite
    e_norm = batch.norm_per_sample(e.float() * batch.scope.unsqueeze(-1))
    cosine = nrm.delta_dot_grad / (nrm.delta1_norm * nrm.grad_norm).clamp_min(1e-30)
    stats.over_samples("nrm/delta0_norm", nrm.delta0_norm, attacked)
    stats.over_samples("nrm/delta1_norm", nrm.delta1_norm, attacked)
    stats.over_samples("nrm/grad_norm", nrm.grad_norm / grad_scale, finite)
    stats.over_samples("nrm/clipped_share", nrm.clipped.float(), attacked)
    stats.over_samples("nrm/cosine", cosine, finite)
    stats.over_samples("nrm/delta_to_embedding", nrm.delta1_norm / e_norm.clamp_min(1e-30), attacked)
    stats.over_samples("nrm/nonfinite", (~nrm.finite).float(), attacked)
