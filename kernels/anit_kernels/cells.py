"""Cells, the unit the Triton kernels work in: their noise, and how they are read and written.

A cell is the eight neighbouring channels of one token that one generator call serves; it is also one 128-bit access in
bfloat16. A tile of cells is a tuple of eight tensors [TOKENS, CELLS], one for each channel of a cell, so that a thread
holds whole cells and exchanges nothing with its neighbours.

Where 8 does not divide D a call straddles tokens: then a cell is one channel (CHANNELS == 1), makes a call of its own
and keeps an eighth of it. Slow and right; widths of real models are multiples of 8.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import philox

ROUNDS: tl.constexpr = tl.constexpr(philox.ROUNDS)
MULTIPLIER_0: tl.constexpr = tl.constexpr(philox.MULTIPLIERS[0])
MULTIPLIER_1: tl.constexpr = tl.constexpr(philox.MULTIPLIERS[1])
KEY_INCREMENT_0: tl.constexpr = tl.constexpr(philox.KEY_INCREMENTS[0])
KEY_INCREMENT_1: tl.constexpr = tl.constexpr(philox.KEY_INCREMENTS[1])
GRID_CENTRE: tl.constexpr = tl.constexpr(32767.5)
# The interpreter cuts float32 off to bfloat16 where GPUs round; what it is given must be rounded already.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def philox_words(c0, c1, c2, c3, key_low, key_high, N_ROUNDS: tl.constexpr):
    """`philox.philox_4x32` on uint32; a 64-bit product is one wide multiply, its halves are free."""
    for _ in tl.static_range(N_ROUNDS):
        product0 = c0.to(tl.uint64) * MULTIPLIER_0
        product1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key_low
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key_high
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        key_low += KEY_INCREMENT_0
        key_high += KEY_INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def _centred(half):
    # Through uint16, so that one conversion instruction also picks the half out of its word.
    return half.to(tl.uint16).to(tl.float32) - GRID_CENTRE


@triton.jit
def noise(rank, cell, counter, D: tl.constexpr, CHANNELS: tl.constexpr):
    """u of the cells `cell` of the tokens of rank `rank`; `counter` = (step, sample id low, high, key low, high)."""
    step, id_low, id_high, key_low, key_high = counter
    if CHANNELS == 8:
        call = (rank * (D // 8) + cell).to(tl.uint32)
        w0, w1, w2, w3 = philox_words(call, step, id_low, id_high, key_low, key_high, ROUNDS)
        return (
            _centred(w0),
            _centred(w0 >> 16),
            _centred(w1),
            _centred(w1 >> 16),
            _centred(w2),
            _centred(w2 >> 16),
            _centred(w3),
            _centred(w3 >> 16),
        )
    else:
        element = rank.to(tl.int64) * D + cell
        call = (element // 8).to(tl.uint32)
        lane = (element % 8).to(tl.uint32)
        w0, w1, w2, w3 = philox_words(call, step, id_low, id_high, key_low, key_high, ROUNDS)
        word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
        return (_centred(word >> (lane % 2 * 16)),)


@triton.jit
def _load_quad(cells, mask):
    """Four neighbouring 32-bit words from each address."""
    addresses = cells[:, :, None] + tl.arange(0, 4)[None, None, :]
    quad = tl.load(addresses, mask=mask[:, :, None], other=0)
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], quad.shape[1], 2, 2]))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _widen(word, DTYPE: tl.constexpr):
    """The two 16-bit floats in a word as float32, the low one first; for bfloat16 one instruction each."""
    if tl.bfloat16 == DTYPE:
        return (word << 16).to(tl.float32, bitcast=True), (word & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        low = (word & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
        high = (word >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def load(cells, mask, CHANNELS: tl.constexpr):
    """The channels of each cell as float32; masked ones are 0."""
    DTYPE: tl.constexpr = cells.dtype.element_ty
    if CHANNELS == 1:
        return (tl.load(cells, mask=mask, other=0).to(tl.float32),)
    elif tl.float32 == DTYPE:
        return _load_quad(cells, mask) + _load_quad(cells + 4, mask)
    else:
        words = cells.to(tl.pointer_type(tl.uint32), bitcast=True)
        w0, w1, w2, w3 = _load_quad(words, mask)
        return _widen(w0, DTYPE) + _widen(w1, DTYPE) + _widen(w2, DTYPE) + _widen(w3, DTYPE)


@triton.jit
def _join_quad(x0, x1, x2, x3):
    return tl.join(tl.join(x0, x2), tl.join(x1, x3))


@triton.jit
def _narrow(value, DTYPE: tl.constexpr):
    """To the nearest value of the output's dtype, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(DTYPE)


@triton.jit
def store(cells, x, mask, CHANNELS: tl.constexpr):
    """Round the channels of each cell to the output's dtype and write them, 128 bits at a time."""
    DTYPE: tl.constexpr = cells.dtype.element_ty
    if CHANNELS == 1:
        tl.store(cells, _narrow(x[0], DTYPE), mask=mask)
    else:
        shape: tl.constexpr = mask.shape
        if tl.float32 == DTYPE:
            addresses = cells[:, :, None] + tl.arange(0, 4)[None, None, :]
            first = tl.reshape(_join_quad(x[0], x[1], x[2], x[3]), [shape[0], shape[1], 4])
            last = tl.reshape(_join_quad(x[4], x[5], x[6], x[7]), [shape[0], shape[1], 4])
            tl.store(addresses, first, mask=mask[:, :, None])
            tl.store(addresses + 4, last, mask=mask[:, :, None])
        else:
            addresses = cells[:, :, None] + tl.arange(0, 8)[None, None, :]
            even = _join_quad(x[0], x[2], x[4], x[6])
            odd = _join_quad(x[1], x[3], x[5], x[7])
            values = tl.reshape(tl.join(even, odd), [shape[0], shape[1], 8])
            tl.store(addresses, _narrow(values, DTYPE), mask=mask[:, :, None])
