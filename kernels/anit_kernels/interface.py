"""What the reference and the Triton kernels share: how a batch is described and checked, the balls, the statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Ball = Literal["frobenius", "linf", "none"]
BALLS: tuple[str, ...] = get_args(Ball)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# delta0 starts at ten times NEFTune's radius at alpha 1 (docs/method.md section 4).
INIT_SCALE = 10.0
# ||g|| is clamped here before dividing by it, so that a gradient of zero moves nothing (docs/method.md section 4).
MIN_GRAD_NORM = 1e-8


@dataclass(frozen=True, slots=True)
class Samples:
    """Whose embeddings a tensor holds, which of its tokens are in scope, and the keys of their noise.

    The fields are the arguments of `anit_kernels.nrm_init` of the same names.
    """

    mask: Tensor
    attended: Tensor
    seed: int
    step: int
    sample_ids: Tensor
    eps: Tensor | float
    beta: Tensor
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    def check(self, embeddings: Tensor) -> None:
        """Raise TypeError or ValueError, in one sentence, where these are not the samples of `embeddings`."""
        if embeddings.dtype not in DTYPES:
            raise TypeError(f"embeddings are {embeddings.dtype}; float32, bfloat16 and float16 are supported")
        packed = self.cu_seqlens is not None
        if embeddings.dim() != (2 if packed else 3):
            layout = "[total, D] with cu_seqlens" if packed else "[B, T, D] without cu_seqlens"
            raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}; they must be {layout}")
        for name, tensor in (("mask", self.mask), ("attended", self.attended)):
            _check_tensor(name, tensor, torch.bool, tuple(embeddings.shape[:-1]))
        if self.cu_seqlens is None:
            samples = len(embeddings)
        else:
            samples = self.cu_seqlens.numel() - 1
            _check_tensor("cu_seqlens", self.cu_seqlens, torch.int32, (samples + 1,))
        if samples < 1:
            raise ValueError("the batch holds no sample")
        _check_tensor("sample_ids", self.sample_ids, torch.int64, (samples,))
        _check_tensor("beta", self.beta, torch.float32, (samples,))
        if isinstance(self.eps, Tensor):
            _check_tensor("eps", self.eps, torch.float32, (samples,))
        if not 0 <= self.step < 2**32:
            raise ValueError(f"step is {self.step}; the generator's counter has room for 0 to 2**32 - 1")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must fit 64 bits")


@dataclass(frozen=True, slots=True)
class NrmStats:
    """What happened to each sample in `nrm_step`; every field is a tensor [B] on the embeddings' device.

    `delta0_norm`, `grad_norm` and `delta1_norm` are Frobenius norms over the tokens in scope and `delta_dot_grad` is
    <delta1, g>, all float32. `clipped` says that the ball changed delta. `finite` says that the float32 sum of squares
    of the gradient is finite; where it is not, delta1 = Proj(delta0), `grad_norm` is inf or NaN and `delta_dot_grad`
    is 0.
    """

    delta0_norm: Tensor
    grad_norm: Tensor
    delta1_norm: Tensor
    delta_dot_grad: Tensor
    clipped: Tensor
    finite: Tensor


def check_step(grad: Tensor, embeddings: Tensor, ball: str) -> None:
    """Raise where the gradient does not belong to the embeddings or the ball has no such name."""
    if grad.dtype not in DTYPES:
        raise TypeError(f"grad is {grad.dtype}; float32, bfloat16 and float16 are supported")
    _check_tensor("grad", grad, grad.dtype, tuple(embeddings.shape))
    if ball not in BALLS:
        raise ValueError(f"ball is {ball!r}; it must be one of {', '.join(BALLS)}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {dtype} {shape}")
