"""`method.step: sign`: NRM's step along the sign of the gradient, the steepest where each element has a bound.

    delta1 = Proj_eps(delta0 + alpha * sign(g))          ours: eq. 5 with sign(g) in place of g / ||g||_F

alpha is then the size of an element's step. Goodfellow et al., ICLR 2015, take it from delta = 0 (`fgsm`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.ball import moved, project
from anit_kernels import Ball, NrmStats


def signed_step(
    g: Tensor, e: Tensor, batch: Batch, delta0: Tensor, *, eps: float, alpha: float, ball: Ball
) -> tuple[Tensor, NrmStats]:
    """e + delta1 [B, T, D] in e's dtype and per-sample statistics, for g [B, T, D], the gradient at e + delta0."""
    g = torch.where(batch.scope.unsqueeze(-1), g.float(), 0.0)
    grad_norm = batch.norm_per_sample(g)
    finite = grad_norm.isfinite()
    g = torch.where(batch.to_tokens(finite), g, 0.0)
    stepped = delta0 + alpha * g.sign()
    delta1 = project(stepped, eps, ball, batch)
    stats = NrmStats(
        delta0_norm=batch.norm_per_sample(delta0),
        grad_norm=grad_norm,
        delta1_norm=batch.norm_per_sample(delta1),
        delta_dot_grad=batch.sum_per_sample(delta1 * g),
        clipped=batch.sum_per_sample((delta1 != stepped).float()) > 0,
        finite=finite,
    )
    return moved(e, delta1), stats
