"""NRM without its arithmetic: results of the right shape and dtype, for tensors that hold nothing (`shapes_only`)."""

from __future__ import annotations

import torch
from torch import Tensor

from .interface import NrmStats, Samples


def nrm_init(embeddings: Tensor, samples: Samples) -> Tensor:
    """As `anit_kernels.nrm_init`'s result."""
    return torch.empty_like(embeddings)


def nrm_step(grad: Tensor, embeddings: Tensor, samples: Samples, alpha: float, ball: str) -> tuple[Tensor, NrmStats]:
    """As `anit_kernels.nrm_step`'s result."""
    number, truth = torch.empty_like(samples.beta), torch.empty_like(samples.beta, dtype=torch.bool)
    return torch.empty_like(embeddings), NrmStats(number, number, number, number, clipped=truth, finite=truth)
