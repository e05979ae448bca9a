"""The Triton kernels of NRM: what one program does. `nrm_triton` launches them.

A program owns one sample, or a run of its tokens, and walks over them in tiles of cells (`cells`); the sums stay
vectors until its last tile. The noise is kept in units of its grid, u = k - 32767.5, and scale = (10 / sqrt(N)) * eps *
(1 - beta) / 32768 carries the rest: dividing by a power of two is exact, so scale * u is the reference's delta0 to the
bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cells import first_cell, load, noise, only_inside, redirected, store
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
def _spread(value, CELLS: tl.constexpr):
    """A token's value [TOKENS] for each of its cells in the tile, flat."""
    return tl.reshape(tl.broadcast_to(value[:, None], [value.shape[0], CELLS]), [value.shape[0] * CELLS])


@triton.jit
def _tokens(mask, attended, start, t0, last, before, D: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr):
    """The first step of a tile of tokens, flat [TOKENS * CELLS], and the rank that follows the tile.

    For each cell: its place in memory; whether its token exists; whether that is in scope (1 or 0); its generator call;
    its first channel. A token behind `last` has the place of the one before `last`, so that reading it is harmless.
    """
    t = t0 + tl.arange(0, TOKENS)
    exists = t < last
    present = tl.load(attended + start + t, mask=exists, other=0).to(tl.int32)
    scope = tl.load(mask + start + t, mask=exists, other=0).to(tl.int32) & present
    rank = _spread(before + tl.cumsum(present, 0) - present, CELLS)
    cell = tl.arange(0, TOKENS * CELLS) % CELLS
    call, channel = first_cell(rank, D)
    call += cell
    channel += cell * 8
    place = _spread(start + tl.minimum(t, last - 1), CELLS) * D + channel
    return place, _spread(exists, CELLS), _spread(scope, CELLS), call, channel, before + tl.sum(present, 0)


@triton.jit
def _reduce(
    grad, mask, attended, start, first, last, before, counter,
    D: tl.constexpr, ROW: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """<u, u>, <u, g> and <g, g> over the tokens in scope from `first` to `last`: one read of g."""
    uu = tl.zeros([TOKENS * CELLS], tl.float32)
    ug = tl.zeros([TOKENS * CELLS], tl.float32)
    gg = tl.zeros([TOKENS * CELLS], tl.float32)
    for t0 in range(first, last, TOKENS):
        place, _, scope, call, channel, before = _tokens(mask, attended, start, t0, last, before, D, TOKENS, CELLS)
        row_uu = tl.zeros([TOKENS * CELLS], tl.float32)
        row_ug = tl.zeros([TOKENS * CELLS], tl.float32)
        row_gg = tl.zeros([TOKENS * CELLS], tl.float32)
        wanted = scope != 0
        place = redirected(place, wanted, start * D, D)
        for turn in range(0, ROW, UNROLL * CELLS):
            for k in tl.static_range(0, UNROLL * CELLS, CELLS):
                u = noise((call + turn + k).to(tl.uint32), counter)
                g_channel = channel + turn * 8 + k * 8
                g = load(grad + place + turn * 8 + k * 8, g_channel, wanted, D, D % 8 != 0)
                for i in tl.static_range(8):
                    u_i = only_inside(u[i], g_channel, i, wanted, D)
                    row_uu += u_i * u_i
                    row_ug += u_i * g[i]
                    row_gg += g[i] * g[i]
        # Rows out of scope have read another row: their sums go, were they NaN.
        uu += tl.where(scope != 0, row_uu, 0.0)
        ug += tl.where(scope != 0, row_ug, 0.0)
        gg += tl.where(scope != 0, row_gg, 0.0)
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
    D: tl.constexpr, ROW: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, UNROLL: tl.constexpr,
    BALL: tl.constexpr,
):  # fmt: skip
    """Write x = e + noise_factor * u + grad_factor * g from token `first` to `last`; under `linf` delta is clamped.

    Without a gradient (None) that is x0. Returns, under `linf`, ||delta||^2, <delta, g> and the largest |element| of
    delta before the clamp.
    """
    squares = tl.zeros([TOKENS * CELLS], tl.float32)
    dots = tl.zeros([TOKENS * CELLS], tl.float32)
    peaks = tl.zeros([TOKENS * CELLS], tl.float32)
    for t0 in range(first, last, TOKENS):
        place, exists, scope, call, channel, before = _tokens(mask, attended, start, t0, last, before, D, TOKENS, CELLS)
        weight = scope.to(tl.float32) * noise_factor
        # A gradient that is not finite is not read: 0 * inf would be NaN.
        wanted = (scope & finite) != 0
        for turn in range(0, ROW, UNROLL * CELLS):
            for k in tl.static_range(0, UNROLL * CELLS, CELLS):
                u = noise((call + turn + k).to(tl.uint32), counter)
                first_channel = channel + turn * 8 + k * 8
                e = load(embeddings + place + turn * 8 + k * 8, first_channel, exists, D, False)
                values = ()
                if grad is None:
                    for i in tl.static_range(8):
                        values = values + (e[i] + u[i] * weight,)
                else:
                    g = load(grad + place + turn * 8 + k * 8, first_channel, wanted, D, True)
                    for i in tl.static_range(8):
                        if BALL == "linf":
                            delta = only_inside(u[i] * weight + g[i] * grad_factor, first_channel, i, exists, D)
                            peaks = tl.maximum(peaks, tl.abs(delta))
                            delta = tl.clamp(delta, -eps, eps)
                            squares += delta * delta
                            dots += delta * g[i]
                            values = values + (e[i] + delta,)
                        else:
                            # Added to e one after the other, each is a single fused multiply-add.
                            values = values + ((e[i] + u[i] * weight) + g[i] * grad_factor,)
                store(x + place + turn * 8 + k * 8, values, first_channel, exists, D)
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
    D: tl.constexpr, ROW: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, UNROLL: tl.constexpr,
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
           scale, 0.0, 0, 0.0, D, ROW, TOKENS, CELLS, UNROLL, "none")  # fmt: skip


@triton.jit(do_not_specialize=["length", "chunk", "step", "key_low", "key_high"])
def reduce_kernel(
    partials, grad, mask, attended, sample_ids, cu_seqlens,
    length, chunk, step: tl.uint32, key_low: tl.uint32, key_high: tl.uint32,
    D: tl.constexpr, ROW: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The three sums over `chunk` tokens of a sample into partials [3, S, chunks]; programs (chunks, samples)."""
    sample = tl.program_id(1)
    start, length = _bounds(sample, length, cu_seqlens)
    first = tl.program_id(0) * chunk
    _, before = _count(mask, attended, start, length, first)
    counter = _counter(sample, sample_ids, step, key_low, key_high)
    uu, ug, gg = _reduce(grad, mask, attended, start, first, tl.minimum(first + chunk, length), before, counter,
                         D, ROW, TOKENS, CELLS, UNROLL)  # fmt: skip
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
    D: tl.constexpr, ROW: tl.constexpr, TOKENS: tl.constexpr, CELLS: tl.constexpr, UNROLL: tl.constexpr,
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
                             D, ROW, TOKENS, CELLS, UNROLL)  # fmt: skip
    else:
        uu = _total(partials, sample)
        ug = _total(partials + plane, sample)
        gg = _total(partials + 2 * plane, sample)
    noise_factor, grad_factor, finite, statistics = _project(uu, ug, gg, scale, radius, alpha, BALL)
    if tl.program_id(0) == 0:
        _record(statistics, norms, flags, sample, tl.num_programs(1))
    squares, dots, peak = _write(x, grad, embeddings, mask, attended, start, first, last, before, counter,
                                 noise_factor, grad_factor, finite, radius,
                                 D, ROW, TOKENS, CELLS, UNROLL, BALL)  # fmt: skip
    if BALL == "linf":
        place = clamped + sample * tl.num_programs(0) + tl.program_id(0)
        tl.store(place, squares)
        tl.store(place + plane, dots)
        tl.store(place + 2 * plane, peak)
