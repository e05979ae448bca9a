"""The Triton kernels of NRM: what one program does. `nrm_triton` launches them.

A program owns one sample, or a run of its tokens, and walks over them in tiles of cells (`cells`); the sums stay
vectors until its last tile. The noise is kept in units of its grid, u = k - 32767.5, and scale = (10 / sqrt(N)) * eps *
(1 - beta) / 32768 carries the rest: dividing by a power of two is exact, so scale * u is the reference's delta0 to the
bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cells import load, noise, store
from .interface import INIT_SCALE, MIN_GRAD_NORM

GRID_HALF_WIDTH: tl.constexpr = tl.constexpr(32768.0)
DELTA0_SCALE: tl.constexpr = tl.constexpr(INIT_SCALE)
GRAD_NORM_FLOOR: tl.constexpr = tl.constexpr(MIN_GRAD_NORM)
LARGEST_FLOAT32: tl.constexpr = tl.constexpr(3.4028234663852886e38)

# How many mask bytes a program reads at a time while it counts tokens.
COUNTED: tl.constexpr = tl.constexpr(1024)
# The most programs that share a sample: bounds the partial sums each of them adds up, and the mask bytes it reads.
MAX_CHUNKS: tl.constexpr = tl.constexpr(256)


@triton.jit
def _bounds(sample, length, cu_seqlens):
    """The sample's first row and its number of rows."""
    if cu_seqlens is None:
        start = sample.to(tl.int64) * length
    else:
        start = tl.load(cu_seqlens + sample).to(tl.int64)
        length = (tl.load(cu_seqlens + sample + 1) - start).to(tl.int32)
    return start, length


@triton.jit
def _count(mask, attended, start, length, first):
    """How many of the sample's tokens are in scope, and how many attended ones precede its token `first`."""
    in_scope = 0
    before = 0
    for t0 in range(0, length, COUNTED):
        t = t0 + tl.arange(0, COUNTED)
        present = tl.load(attended + start + t, mask=t < length, other=0).to(tl.int32)
        scope = tl.load(mask + start + t, mask=t < length, other=0).to(tl.int32) & present
        in_scope += tl.sum(scope, 0)
        before += tl.sum(tl.where(t < first, present, 0), 0)
    return in_scope, before


@triton.jit
def _scale(in_scope, eps, beta, D: tl.constexpr):
    elements = (tl.maximum(in_scope, 1).to(tl.int64) * D).to(tl.float32)
    radius = tl.div_rn(tl.full([], DELTA0_SCALE, tl.float32), tl.sqrt_rn(elements)) * eps * (1.0 - beta)
    return radius / GRID_HALF_WIDTH


@triton.jit
def _radius(eps, sample, EPS_PER_SAMPLE: tl.constexpr):
    if EPS_PER_SAMPLE:
        return tl.load(eps + sample)
    else:
        return eps


@triton.jit
def _counter(sample, sample_ids, step, key_low, key_high):
    sample_id = tl.load(sample_ids + sample)
    return (
        step.to(tl.uint32),
        sample_id.to(tl.uint32),
        (sample_id >> 32).to(tl.uint32),
        key_low.to(tl.uint32),
        key_high.to(tl.uint32),
    )


@triton.jit
def _tokens(mask, attended, start, t0, last, before, TOKENS: tl.constexpr):
    """A tile's rows; whether they exist; whether they are in scope (1 or 0); their ranks, and the rank that follows."""
    t = t0 + tl.arange(0, TOKENS)
    exists = t < last
    present = tl.load(attended + start + t, mask=exists, other=0).to(tl.int32)
    scope = tl.load(mask + start + t, mask=exists, other=0).to(tl.int32) & present
    rank = before + tl.cumsum(present, 0) - present
    return (start + t)[:, None], exists[:, None], scope[:, None], rank[:, None], before + tl.sum(present, 0)


@triton.jit
def _inside(rows, cell, D: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """`rows` [TOKENS, 1] for each cell; where a cell is one channel, the last cells of a tile may lie beyond D."""
    inside = tl.broadcast_to(rows, [rows.shape[0], CELLS])
    return inside & (cell < D) if CHANNELS == 1 else inside


@triton.jit
def _reduce(
    grad, mask, attended, start, first, last, before, counter,
    D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """<u, u>, <u, g> and <g, g> over the tokens in scope from `first` to `last`: one read of g."""
    uu = tl.zeros([TOKENS, CELLS], tl.float32)
    ug = tl.zeros([TOKENS, CELLS], tl.float32)
    gg = tl.zeros([TOKENS, CELLS], tl.float32)
    for t0 in range(first, last, TOKENS):
        row, _, scope, rank, before = _tokens(mask, attended, start, t0, last, before, TOKENS)
        place = row * D + tl.arange(0, CELLS)[None, :] * CHANNELS
        for c0 in tl.range(0, D // CHANNELS, CELLS, loop_unroll_factor=UNROLL):
            cell = c0 + tl.arange(0, CELLS)[None, :]
            inside = _inside(scope != 0, cell, D, CELLS, CHANNELS)
            u = noise(rank, cell, counter, D, CHANNELS)
            g = load(grad + place + c0 * CHANNELS, inside, CHANNELS)
            cell_uu = u[0] * u[0]
            for i in tl.static_range(CHANNELS):
                if i > 0:
                    cell_uu += u[i] * u[i]
                ug += u[i] * g[i]
                gg += g[i] * g[i]
            # g is 0 outside the scope, u is not.
            uu += cell_uu * inside.to(tl.float32)
    return tl.sum(uu), tl.sum(ug), tl.sum(gg)


@triton.jit
def _project(uu, ug, gg, scale, eps, alpha, BALL: tl.constexpr):
    """The factors of u and g in delta1 and the sample's statistics, from the three sums.

    ||delta0 + a g||^2 = ||delta0||^2 + 2 a <delta0, g> + a^2 ||g||^2 with a = alpha / ||g||, so the projection needs no
    pass of its own; rounding can take that below 0. Norm, dot product and clipping of `linf` are left to `_write`.
    """
    finite = gg <= LARGEST_FLOAT32
    delta0_norm = scale * tl.sqrt_rn(uu)
    grad_norm = tl.sqrt_rn(gg)
    grad_factor = tl.where(finite, tl.div_rn(alpha, tl.maximum(grad_norm, GRAD_NORM_FLOOR)), 0.0)
    length = tl.where(finite, grad_factor * grad_norm, 0.0)
    dot0 = tl.where(finite, scale * ug, 0.0)
    norm = tl.sqrt_rn(tl.maximum(delta0_norm * delta0_norm + 2.0 * grad_factor * dot0 + length * length, 0.0))
    dot = dot0 + tl.where(finite, length * grad_norm, 0.0)
    clipped = tl.full([], 0, tl.int1)
    shrink = tl.full([], 1.0, tl.float32)
    if BALL == "frobenius":
        clipped = norm > eps
        shrink = tl.where(clipped, tl.div_rn(eps, norm), 1.0)
    statistics = (delta0_norm, grad_norm, shrink * norm, shrink * dot, clipped, finite)
    return shrink * scale, shrink * grad_factor, finite.to(tl.int32), statistics


@triton.jit
def _write(
    x, grad, embeddings, mask, attended, start, first, last, before, counter,
    noise_factor, grad_factor, finite, eps,
    D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
    BALL: tl.constexpr,
):  # fmt: skip
    """Write x = e + noise_factor * u + grad_factor * g from token `first` to `last`; under `linf` delta is clamped.

    Without a gradient (None) that is x0. Returns, under `linf`, ||delta||^2, <delta, g> and the largest |element| of
    delta before the clamp.
    """
    squares = tl.zeros([TOKENS, CELLS], tl.float32)
    dots = tl.zeros([TOKENS, CELLS], tl.float32)
    peaks = tl.zeros([TOKENS, CELLS], tl.float32)
    for t0 in range(first, last, TOKENS):
        row, exists, scope, rank, before = _tokens(mask, attended, start, t0, last, before, TOKENS)
        weight = scope.to(tl.float32) * noise_factor
        place = row * D + tl.arange(0, CELLS)[None, :] * CHANNELS
        for c0 in tl.range(0, D // CHANNELS, CELLS, loop_unroll_factor=UNROLL):
            cell = c0 + tl.arange(0, CELLS)[None, :]
            inside = _inside(exists, cell, D, CELLS, CHANNELS)
            u = noise(rank, cell, counter, D, CHANNELS)
            e = load(embeddings + place + c0 * CHANNELS, inside, CHANNELS)
            values = ()
            if grad is None:
                for i in tl.static_range(CHANNELS):
                    values = values + (e[i] + u[i] * weight,)
            else:
                # A gradient that is not finite is not read: 0 * inf would be NaN.
                wanted = _inside((scope & finite) != 0, cell, D, CELLS, CHANNELS)
                g = load(grad + place + c0 * CHANNELS, wanted, CHANNELS)
                for i in tl.static_range(CHANNELS):
                    if BALL == "linf":
                        delta = u[i] * weight + g[i] * grad_factor
                        if CHANNELS == 1:
                            delta = tl.where(inside, delta, 0.0)
                        peaks = tl.maximum(peaks, tl.abs(delta))
                        delta = tl.clamp(delta, -eps, eps)
                        squares += delta * delta
                        dots += delta * g[i]
                        values = values + (e[i] + delta,)
                    else:
                        # Added to e one after the other, each is a single fused multiply-add.
                        values = values + ((e[i] + u[i] * weight) + g[i] * grad_factor,)
            store(x + place + c0 * CHANNELS, values, inside, CHANNELS)
    return tl.sum(squares), tl.sum(dots), tl.max(peaks)


@triton.jit
def _record(statistics, norms, flags, sample, samples):
    """Write a sample's column of `norms` [4, S] and `flags` [2, S], the fields of NrmStats in order."""
    for i in tl.static_range(4):
        tl.store(norms + i * samples + sample, statistics[i])
    tl.store(flags + sample, statistics[4].to(tl.int8))
    tl.store(flags + samples + sample, statistics[5].to(tl.int8))


@triton.jit(do_not_specialize=["length", "chunk", "step", "key_low", "key_high"])
def init_kernel(
    x, embeddings, mask, attended, sample_ids, eps, beta, cu_seqlens,
    length, chunk, step: tl.uint32, key_low: tl.uint32, key_high: tl.uint32,
    D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
    EPS_PER_SAMPLE: tl.constexpr,
):  # fmt: skip
    """x0 = e + delta0 for `chunk` tokens of a sample; programs (chunks, samples)."""
    sample = tl.program_id(1)
    start, length = _bounds(sample, length, cu_seqlens)
    first = tl.program_id(0) * chunk
    in_scope, before = _count(mask, attended, start, length, first)
    scale = _scale(in_scope, _radius(eps, sample, EPS_PER_SAMPLE), tl.load(beta + sample), D)
    counter = _counter(sample, sample_ids, step, key_low, key_high)
    _write(x, None, embeddings, mask, attended, start, first, tl.minimum(first + chunk, length), before, counter,
           scale, 0.0, 0, 0.0, D, TOKENS, CELLS, CHANNELS, UNROLL, "none")  # fmt: skip


@triton.jit(do_not_specialize=["length", "chunk", "step", "key_low", "key_high"])
def reduce_kernel(
    partials, grad, mask, attended, sample_ids, cu_seqlens,
    length, chunk, step: tl.uint32, key_low: tl.uint32, key_high: tl.uint32,
    D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The three sums over `chunk` tokens of a sample into partials [3, S, chunks]; programs (chunks, samples)."""
    sample = tl.program_id(1)
    start, length = _bounds(sample, length, cu_seqlens)
    first = tl.program_id(0) * chunk
    _, before = _count(mask, attended, start, length, first)
    counter = _counter(sample, sample_ids, step, key_low, key_high)
    uu, ug, gg = _reduce(grad, mask, attended, start, first, tl.minimum(first + chunk, length), before, counter,
                         D, TOKENS, CELLS, CHANNELS, UNROLL)  # fmt: skip
    place = partials + sample * tl.num_programs(0) + tl.program_id(0)
    plane = tl.num_programs(0) * tl.num_programs(1)
    tl.store(place, uu)
    tl.store(place + plane, ug)
    tl.store(place + 2 * plane, gg)


@triton.jit
def _total(partials, sample):
    """A sample's sum over its programs, always in the same order."""
    chunks = tl.num_programs(0)
    i = tl.arange(0, MAX_CHUNKS)
    return tl.sum(tl.load(partials + sample * chunks + i, mask=i < chunks, other=0.0), 0)


@triton.jit(do_not_specialize=["length", "chunk", "step", "key_low", "key_high"])
def apply_kernel(
    x, norms, flags, clamped, partials, grad, embeddings, mask, attended, sample_ids, eps, beta, cu_seqlens, alpha,
    length, chunk, step: tl.uint32, key_low: tl.uint32, key_high: tl.uint32,
    D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, UNROLL: tl.constexpr,
    BALL: tl.constexpr, FUSED: tl.constexpr, EPS_PER_SAMPLE: tl.constexpr,
):  # fmt: skip
    """x1 = e + delta1 for `chunk` tokens of a sample and, once a sample, its statistics; programs (chunks, samples).

    FUSED has one program a sample, which takes the sums itself; else they come from `reduce_kernel`. Under `linf` each
    program leaves ||delta1||^2, <delta1, g> and the largest |element| in clamped [3, S, chunks].
    """
    sample = tl.program_id(1)
    start, length = _bounds(sample, length, cu_seqlens)
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, length)
    in_scope, before = _count(mask, attended, start, length, first)
    radius = _radius(eps, sample, EPS_PER_SAMPLE)
    scale = _scale(in_scope, radius, tl.load(beta + sample), D)
    counter = _counter(sample, sample_ids, step, key_low, key_high)
    plane = tl.num_programs(0) * tl.num_programs(1)
    if FUSED:
        uu, ug, gg = _reduce(grad, mask, attended, start, first, last, before, counter,
                             D, TOKENS, CELLS, CHANNELS, UNROLL)  # fmt: skip
    else:
        uu = _total(partials, sample)
        ug = _total(partials + plane, sample)
        gg = _total(partials + 2 * plane, sample)
    noise_factor, grad_factor, finite, statistics = _project(uu, ug, gg, scale, radius, alpha, BALL)
    if tl.program_id(0) == 0:
        _record(statistics, norms, flags, sample, tl.num_programs(1))
    squares, dots, peak = _write(x, grad, embeddings, mask, attended, start, first, last, before, counter,
                                 noise_factor, grad_factor, finite, radius,
                                 D, TOKENS, CELLS, CHANNELS, UNROLL, BALL)  # fmt: skip
    if BALL == "linf":
        place = clamped + sample * tl.num_programs(0) + tl.program_id(0)
        tl.store(place, squares)
        tl.store(place + plane, dots)
        tl.store(place + 2 * plane, peak)
