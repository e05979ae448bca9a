"""anit_kernels: the Noise Response Method's arithmetic on the embeddings, behind one door.

`nrm_init` perturbs a batch of embeddings with delta0, `nrm_step` with delta1 = Proj(delta0 + alpha * g / ||g||), per
sample (docs/method.md section 4). Neither delta is stored: delta0 comes from a counter-based generator and is drawn
again.

    x0 = nrm_init(e, mask, attended, seed, step, sample_ids, eps, beta)
    ...                                                    # g, the gradient of the loss with respect to x0
    x1, stats = nrm_step(g, e, mask, attended, seed, step, sample_ids, eps, beta, alpha, "frobenius")

On CUDA and ROCm the Triton kernels run where Triton is installed, the PyTorch reference elsewhere;
ANIT_KERNEL=triton|reference forces one (with TRITON_INTERPRET=1 the kernels run on CPU tensors). The logger
`anit_kernels` says once which it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from torch import Tensor

from .interface import BALLS, Ball, NrmStats, Samples, check_step

__all__ = ["BALLS", "Ball", "NrmStats", "nrm_init", "nrm_step", "shapes_only"]

logger = logging.getLogger("anit_kernels")
_shapes_only = False


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, results have their shapes and dtypes and no values: for the fake tensors with which a plan counts the
    memory of a step without running it. Not for several threads at once."""
    global _shapes_only
    _shapes_only = True
    try:
        yield
    finally:
        _shapes_only = False


def nrm_init(
    embeddings: Tensor,
    mask: Tensor,
    attended: Tensor,
    seed: int,
    step: int,
    sample_ids: Tensor,
    eps: Tensor | float,
    beta: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """x0 = e + delta0 with delta0 = mask * (10 / sqrt(N)) * U(-eps, eps) * (1 - beta) (docs/method.md section 4).

    Args:
        embeddings: e [B, T, D], float32, bfloat16 or float16; delta0 is computed in float32.
        mask: bool [B, T], the tokens in scope; one that is not attended is never in scope. N = tokens in scope * D.
        attended: bool [B, T], the sample's real tokens: the noise of a token follows from its rank among them, so it
            does not depend on the padding or on the scope.
        seed: the run's seed, 64 bits: the generator's key.
        step: the optimizer step, 0 to 2**32 - 1.
        sample_ids: int64 [B], read as 64 bits.
        eps: the ball's radius in the embeddings' units, a number or float32 [B].
        beta: float32 [B], the semantic distortion, 0 to 1.
        cu_seqlens: int32 [S + 1] for the layout without padding: embeddings [total, D], mask and attended [total], and
            sample s (of S instead of B) holds the rows cu_seqlens[s] to cu_seqlens[s + 1].
        max_seqlen: the longest such sample; without it the Triton kernels wait for the GPU to read cu_seqlens.

    Returns:
        x0 in the embeddings' shape and dtype; outside the scope it equals e.

    Raises:
        TypeError, ValueError: a dtype, shape or range other than the above.
    """
    samples = Samples(mask, attended, seed, step, sample_ids, eps, beta, cu_seqlens, max_seqlen)
    samples.check(embeddings)
    result: Tensor = _implementation(embeddings.device.type).nrm_init(embeddings, samples)
    return result


def nrm_step(
    grad: Tensor,
    embeddings: Tensor,
    mask: Tensor,
    attended: Tensor,
    seed: int,
    step: int,
    sample_ids: Tensor,
    eps: Tensor | float,
    beta: Tensor,
    alpha: float,
    ball: Ball,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> tuple[Tensor, NrmStats]:
    """x1 = e + delta1 with delta1 = Proj(delta0 + alpha * g / ||g||_F), per sample (docs/method.md section 4).

    Args:
        grad: g [B, T, D], the gradient at x0; any of the three dtypes. What it holds outside the scope is ignored.
        alpha: the length of the step along g / ||g||_F, in the embeddings' units.
        ball: `frobenius` rescales a delta whose norm exceeds eps to eps, `linf` clamps each element to [-eps, eps],
            `none` leaves it.

    The other arguments are those that `nrm_init` was given. Norms are taken per sample in float32 and ||g|| is
    clamped at 1e-8. A sample whose gradient is not finite gets Proj(delta0).

    Returns:
        x1 in the embeddings' shape and dtype (outside the scope it equals e), and the statistics of each sample.

    Raises:
        TypeError, ValueError: a dtype, shape, range or name other than the above.
    """
    samples = Samples(mask, attended, seed, step, sample_ids, eps, beta, cu_seqlens, max_seqlen)
    samples.check(embeddings)
    check_step(grad, embeddings, ball)
    result: tuple[Tensor, NrmStats] = _implementation(embeddings.device.type).nrm_step(
        grad, embeddings, samples, alpha, ball
    )
    return result


def _implementation(device: str) -> ModuleType:
    if _shapes_only:
        return importlib.import_module(".nrm_shapes", __name__)
    return _load(device, os.environ.get("ANIT_KERNEL", ""))


@cache
def _load(device: str, forced: str) -> ModuleType:
    """The module that serves a device; cached, so that its log line is written once."""
    if forced not in ("", "triton", "reference"):
        raise ValueError(f"ANIT_KERNEL is {forced!r}; it must be 'triton', 'reference' or unset")
    # ROCm's devices are called cuda too.
    has_triton = importlib.util.find_spec("triton") is not None
    if forced == "triton" and not has_triton:
        raise ImportError("ANIT_KERNEL is 'triton' but Triton is not installed: pip install 'anit-ds[triton]'")
    name = forced or ("triton" if device == "cuda" and has_triton else "reference")
    module = importlib.import_module(f".nrm_{name}", __name__)
    reason = "ANIT_KERNEL asks for it" if forced else f"device {device}, Triton {'' if has_triton else 'not '}installed"
    logger.info("NRM runs on the %s (%s)", "Triton kernels" if name == "triton" else "PyTorch reference", reason)
    return module
