"""e + delta0 and e + delta1 for a `Batch`, padded or packed, through `anit_kernels`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_kernels import Ball, NrmStats, nrm_init, nrm_step


def perturbed_start(
    e: Tensor, batch: Batch, *, seed: int, eps: float, beta: Tensor | None = None, scope: Tensor | None = None
) -> Tensor:
    """e + delta0 [B, T, D] (eq. 7), in e's dtype; `beta` and `scope` are the batch's where they are not given."""
    beta, scope = batch.beta if beta is None else beta, batch.scope if scope is None else scope
    e, scope, attended, packed = _layout(batch, e, scope, batch.attended)
    x0 = nrm_init(e, scope, attended, seed, batch.step, batch.sample_ids, eps, beta, **packed)
    return x0[None] if packed else x0


def perturbed_step(
    g: Tensor, e: Tensor, batch: Batch, *, seed: int, eps: float, alpha: float, ball: Ball, beta: Tensor | None = None
) -> tuple[Tensor, NrmStats]:
    """e + delta1 [B, T, D] (eq. 5 and 6) in e's dtype, for g [B, T, D], the gradient at e + delta0; per-sample
    statistics. `beta` is the batch's where it is not given."""
    beta = batch.beta if beta is None else beta
    g, e, scope, attended, packed = _layout(batch, g, e, batch.scope, batch.attended)
    x1, stats = nrm_step(g, e, scope, attended, seed, batch.step, batch.sample_ids, eps, beta, alpha, ball, **packed)
    return (x1[None] if packed else x1), stats


def _layout(batch: Batch, *tensors: Tensor) -> tuple[Any, ...]:
    """The tensors in the kernels' layout, [total, ...] for a packed batch, and the keywords that name it."""
    if batch.lengths is None:
        return *tensors, {}
    return *(t[0] for t in tensors), {"cu_seqlens": batch.cu_seqlens, "max_seqlen": max(batch.lengths)}
