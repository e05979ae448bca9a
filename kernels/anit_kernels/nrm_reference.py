"""NRM in plain PyTorch: what runs where there is no GPU, and what the Triton kernels are measured against.

A sample at a time and only its attended tokens: a padded row and a packed segment of the same sample go through the
same instructions, padding costs nothing, and the generator's temporaries stay in a CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .interface import INIT_SCALE, MIN_GRAD_NORM, NrmStats, Samples
from .philox import uniforms


def nrm_init(embeddings: Tensor, samples: Samples) -> Tensor:
    """x0 = e + delta0; see `anit_kernels.nrm_init`."""
    x0 = embeddings.clone(memory_format=torch.contiguous_format)
    rows = x0.view(-1, x0.shape[-1])
    for tokens, delta0, _ in _perturbations(samples, rows.shape[-1]):
        rows[tokens] = delta0.add_(rows[tokens]).to(rows.dtype)
    return x0


def nrm_step(grad: Tensor, embeddings: Tensor, samples: Samples, alpha: float, ball: str) -> tuple[Tensor, NrmStats]:
    """x1 = e + Proj(delta0 + alpha * g / ||g||) and its statistics; see `anit_kernels.nrm_step`."""
    x1 = embeddings.clone(memory_format=torch.contiguous_format)
    rows, grad_rows = x1.view(-1, x1.shape[-1]), grad.reshape(-1, grad.shape[-1])
    stats = []
    for tokens, delta0, eps in _perturbations(samples, rows.shape[-1]):
        delta1, sample_stats = _attack(delta0, grad_rows[tokens].float(), eps, alpha, ball)
        rows[tokens] = delta1.add_(rows[tokens]).to(rows.dtype)
        stats.append(sample_stats)
    return x1, NrmStats(*(torch.stack(column) for column in zip(*stats, strict=True)))


def _perturbations(samples: Samples, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each sample: its tokens in scope as row numbers [n], its delta0 [n, D] in float32, and its eps."""
    eps = samples.eps if isinstance(samples.eps, Tensor) else torch.full_like(samples.beta, samples.eps)
    for i, sample_id in enumerate(samples.sample_ids.tolist()):
        tokens, scope = _scope(samples, i)
        count = torch.full_like(eps[i], max(len(tokens), 1) * width)
        # Tensor by tensor: PyTorch computes `number / tensor` as a reciprocal and a product, which rounds twice, and
        # delta0 is promised to the bit.
        scale = torch.full_like(count, INIT_SCALE) / count.sqrt() * eps[i] * (1.0 - samples.beta[i])
        if scale:
            noise = uniforms(len(scope) * width, samples.seed, samples.step, sample_id, scope.device)
            delta0 = noise.view(len(scope), width)[scope].mul_(scale)
        else:  # no random start: drawing for nothing would be most of what a step costs here
            delta0 = torch.zeros(len(tokens), width, device=scope.device)
        yield tokens, delta0, eps[i]


def _scope(samples: Samples, i: int) -> tuple[Tensor, Tensor]:
    """Sample i's tokens in scope as row numbers [n], and which of its attended tokens they are, bool [attended]."""
    length = samples.mask.shape[-1]
    if samples.cu_seqlens is None:
        start, end = i * length, (i + 1) * length
    else:
        start, end = samples.cu_seqlens[i : i + 2].tolist()
    present = samples.attended.reshape(-1)[start:end].nonzero().squeeze(1) + start
    scope = samples.mask.reshape(-1)[present]
    return present[scope], scope


def _attack(delta0: Tensor, g: Tensor, eps: Tensor, alpha: float, ball: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """delta1 of one sample [n, D] and the fields of NrmStats as scalars."""
    square = _dot(g, g)
    finite = square.isfinite()
    grad_norm = square.sqrt()
    # Filling, not multiplying by zero: 0 * inf is NaN.
    g = g.where(finite, 0.0)
    step_size = torch.where(finite, alpha / grad_norm.clamp(min=MIN_GRAD_NORM), 0.0)
    delta0_norm = _dot(delta0, delta0).sqrt()
    delta = torch.addcmul(delta0, g, step_size)
    clipped = torch.zeros_like(finite)
    if ball == "frobenius":
        norm = _dot(delta, delta).sqrt()
        clipped = norm > eps
        delta *= torch.where(clipped, eps / norm, 1.0)
    elif ball == "linf":
        clipped = (delta.abs() > eps).any()
        delta = delta.clamp(-eps, eps)
    return delta, (delta0_norm, grad_norm, _dot(delta, delta).sqrt(), _dot(delta, g), clipped, finite)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> in float32; the order of this sum depends on the shape alone, a BLAS dot product's on alignment too."""
    return (a * b).sum()
