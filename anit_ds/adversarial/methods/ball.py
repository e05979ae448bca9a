"""Steps and projections of a perturbation, one sample at a time, in float32: for the methods that store their delta."""

from __future__ import annotations

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch


def direction(g: Tensor, batch: Batch) -> Tensor:
    """g / ||g||_F of each sample over its tokens in scope (eq. 6): [B, T, D] float32; 0 where g is not finite.

    The norm is clamped at 1e-8, so a gradient of zero gives no step.
    """
    g = torch.where(batch.scope.unsqueeze(-1), g.float(), 0.0)
    norm = batch.to_tokens(batch.norm_per_sample(g))
    return torch.where(norm.isfinite(), g / norm.clamp_min(1e-8), 0.0)


def moved(e: Tensor, delta: Tensor) -> Tensor:
    """e + delta, added in float32 and rounded once to e's dtype."""
    return (e.float() + delta).to(e.dtype)


def project(delta: Tensor, eps: float, ball: str, batch: Batch) -> Tensor:
    """Proj_eps of each sample's delta [B, T, D] (eq. 5): on its Frobenius norm, on each element, or nowhere."""
    if ball == "frobenius":
        norm = batch.to_tokens(batch.norm_per_sample(delta))
        return delta * (eps / norm.clamp_min(1e-30)).clamp(max=1.0)
    return delta.clamp(-eps, eps) if ball == "linf" else delta
