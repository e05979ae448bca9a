"""The launches of NRM's Triton kernels: which of them, in how many programs, over which tiles.

`nrm_init` is one launch, one read of e and one write. `nrm_step` is one launch where a sample is small, else two:
`reduce_kernel` reads g for the sums, `apply_kernel` reads g again (from L2 where it fits) and e, and writes. Between
the two only three partial sums a program go through memory, and no atomics, so a result never depends on timing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .interface import NrmStats, Samples
from .nrm_kernels import MAX_CHUNKS, apply_kernel, init_kernel, reduce_kernel
from .philox import UNIFORMS_A_CALL, split_words

# One program a sample saves a launch, about 20 us of Python and driver, and costs whatever the rest of the GPU could
# have done: one SM of an H100 streams about 25 bytes/ns and a step moves 8 bytes an element, so 64k elements take the
# same 20 us. A model, not yet a measurement.
ONE_LAUNCH_ELEMENTS = 65536
# A program that has an SM to itself needs more loads in flight than one of many; with 16 warps sm_100 spills.
ONE_LAUNCH_WARPS = 8

# What a program gets where many share a sample: with 16k elements its partial sums and its count of the mask stay below
# 1% of its traffic, and eight samples of 512 x 4096 make more programs than any GPU runs at once.
CHUNK_ELEMENTS = 16384
CHUNK_WARPS = 4
WARP_SIZE = 64 if torch.version.hip else 32

# A row's loop is unrolled up to this often: addresses become constant offsets, and keys that sit in uniform registers
# are moved once for several cells. More only fills the instruction cache.
MAX_UNROLL = 10


class Tiling(NamedTuple):
    """A tile of TOKENS x CELLS cells, one a thread, walks along rows of ROW cells, UNROLL steps in a turn of the loop.

    Where CELLS does not divide a row, ROW includes the cells of the last step that lie beyond it.
    """

    ROW: int
    TOKENS: int
    CELLS: int
    UNROLL: int


class Split(NamedTuple):
    """How samples are cut: `chunks` programs a sample, `chunk` tokens and `warps` warps each."""

    chunks: int
    chunk: int
    warps: int


def tiling(width: int, threads: int) -> Tiling:
    """The tile for embeddings of `width` channels.

    A row is walked in nine steps or more where that leaves 8 cells (128 bytes of bfloat16) side by side: what is done
    once a token (its rank, its mask, its addresses) is then spread over the steps.
    """
    # Where 8 does not divide the width, a row may begin and end inside a cell.
    cut = width % UNIFORMS_A_CALL != 0
    row = (width + UNIFORMS_A_CALL - 2) // UNIFORMS_A_CALL + 1 if cut else width // UNIFORMS_A_CALL
    cells = 1
    while row % (2 * cells) == 0 and 2 * cells <= threads and (cells < 8 or row // (2 * cells) >= 9):
        cells *= 2
    if cut:  # Small steps: the last may lie half beyond the row.
        cells = min(4, triton.next_power_of_2(row))
    steps = triton.cdiv(row, cells)
    # A cell of a cut row takes eight accesses, masked one by one, where others take one.
    most = MAX_UNROLL // 3 if cut else MAX_UNROLL
    unroll = max(n for n in range(1, most + 1) if steps % n == 0)
    return Tiling(steps * cells, threads // cells, cells, unroll)


def one_launch(length: int, width: int) -> Split:
    """One program a sample."""
    return Split(1, max(length, 1), ONE_LAUNCH_WARPS)


def many_programs(length: int, width: int) -> Split:
    """Programs of about CHUNK_ELEMENTS elements, at most MAX_CHUNKS a sample, whose last tile is full."""
    tokens = tiling(width, CHUNK_WARPS * WARP_SIZE).TOKENS
    chunk = max(triton.cdiv(CHUNK_ELEMENTS, width), triton.cdiv(length, MAX_CHUNKS.value), 1)
    chunk = triton.cdiv(chunk, tokens) * tokens
    return Split(max(triton.cdiv(length, chunk), 1), chunk, CHUNK_WARPS)


def nrm_init(embeddings: Tensor, samples: Samples) -> Tensor:
    """x0 = e + delta0; see `anit_kernels.nrm_init`."""
    embeddings = _streamable(embeddings)
    x0 = torch.empty_like(embeddings)
    split = many_programs(_longest(embeddings, samples), embeddings.shape[-1])
    with torch.cuda.device_of(embeddings):
        init_kernel[split.chunks, len(samples)](
            x0, embeddings, **_noise_arguments(samples), **_arguments(embeddings, samples, split)
        )
    return x0


def nrm_step(grad: Tensor, embeddings: Tensor, samples: Samples, alpha: float, ball: str) -> tuple[Tensor, NrmStats]:
    """x1 = e + Proj(delta0 + alpha * g / ||g||) and its statistics; see `anit_kernels.nrm_step`."""
    grad, embeddings = _streamable(grad), _streamable(embeddings)
    length, width = _longest(embeddings, samples), embeddings.shape[-1]
    fused = length * width <= ONE_LAUNCH_ELEMENTS
    split = (one_launch if fused else many_programs)(length, width)
    grid = (split.chunks, len(samples))
    arguments = _arguments(embeddings, samples, split)

    x1 = torch.empty_like(embeddings)
    norms = embeddings.new_empty(4, len(samples), dtype=torch.float32)
    flags = embeddings.new_empty(2, len(samples), dtype=torch.int8)
    sums = embeddings.new_empty(3, len(samples), split.chunks, dtype=torch.float32)
    clamped = torch.empty_like(sums)
    with torch.cuda.device_of(embeddings):
        if not fused:
            reduce_kernel[grid](sums, grad, **arguments)
        apply_kernel[grid](
            x1, norms, flags, clamped, sums, grad, embeddings,
            alpha=float(alpha), BALL=ball, FUSED=fused, **_noise_arguments(samples), **arguments,
        )  # fmt: skip
    delta0_norm, grad_norm, delta1_norm, delta_dot_grad = norms
    clipped, finite = flags.bool()
    if ball == "linf":
        delta1_norm, delta_dot_grad = clamped[0].sum(1).sqrt(), clamped[1].sum(1)
        clipped = clamped[2].amax(1) > samples.eps
    return x1, NrmStats(delta0_norm, grad_norm, delta1_norm, delta_dot_grad, clipped, finite)


def _arguments(embeddings: Tensor, samples: Samples, split: Split) -> dict[str, Any]:
    """What every launch is given."""
    key_low, key_high = split_words(samples.seed)
    width = embeddings.shape[-1]
    return {
        # Bytes 0 and 1: a bool would be compared with zero once more.
        "mask": samples.mask.contiguous().view(torch.uint8),
        "attended": samples.attended.contiguous().view(torch.uint8),
        # What a kernel reads by its place must lie there: one beta for all samples may be a single number, expanded.
        "sample_ids": samples.sample_ids.contiguous(),
        "cu_seqlens": None if samples.cu_seqlens is None else samples.cu_seqlens.contiguous(),
        "length": _longest(embeddings, samples),
        "chunk": split.chunk,
        "step": samples.step,
        "key_low": key_low,
        "key_high": key_high,
        "D": width,
        **tiling(width, split.warps * WARP_SIZE)._asdict(),
        "num_warps": split.warps,
        # Its default differs between versions of Triton, and the kernels count on a * b + c being one instruction.
        "enable_fp_fusion": True,
    }


def _longest(embeddings: Tensor, samples: Samples) -> int:
    """The rows of the longest sample, or a bound: T where samples are padded."""
    if samples.cu_seqlens is None:
        return embeddings.shape[1]
    if samples.max_seqlen is not None:
        return samples.max_seqlen
    return int(samples.cu_seqlens.diff().amax())


def _noise_arguments(samples: Samples) -> dict[str, Any]:
    """What sets delta0's scale."""
    eps = samples.eps.contiguous() if isinstance(samples.eps, Tensor) else float(samples.eps)
    return {"eps": eps, "beta": samples.beta.contiguous(), "EPS_PER_SAMPLE": isinstance(eps, Tensor)}


def _streamable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where 128-bit accesses of whole rows need one: contiguous, from a 16-byte boundary on."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
