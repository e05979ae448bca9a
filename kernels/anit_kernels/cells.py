"""Cells, the unit the Triton kernels work in: their noise, and how they are read and written.

A cell is the eight neighbouring channels of one token that one generator call serves; it is also one 128-bit access in
bfloat16. A tile of cells is a tuple of eight flat tensors, one for each channel of a cell, so that a thread holds whole
cells and exchanges nothing with its neighbours. Flat, because the order of two dimensions is the compiler's choice:
Triton 3.6 orders those of a load otherwise than those of the noise, and all of it went through shared memory.

Where 8 does not divide D, a call straddles tokens. A row then has cells that its ends cut; the call is made for both
tokens, and a cell is read and written one channel at a time, since it starts anywhere.
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
def first_cell(rank, D: tl.constexpr):
    """The generator call of the first cell of a token's row, and that cell's first channel (at most 0)."""
    if D % 8 == 0:
        return rank * (D // 8), tl.zeros_like(rank)
    else:
        element = rank.to(tl.int64) * D
        return (element // 8).to(tl.int32), -(element % 8).to(tl.int32)


@triton.jit
def _inside(channel, i: tl.constexpr, mask, D: tl.constexpr):
    """`mask` for channel i of the cells whose first is `channel`, where the ends of a row cut cells."""
    return mask & (channel >= -i) & (channel < D - i)


@triton.jit
def only_inside(value, channel, i: tl.constexpr, mask, D: tl.constexpr):
    """Channel i of each cell, 0 where a row's end cuts it off; nothing to do where 8 divides D."""
    return value if D % 8 == 0 else tl.where(_inside(channel, i, mask, D), value, 0.0)


@triton.jit
def redirected(place, wanted, elsewhere, D: tl.constexpr):
    """`place` where it is wanted, else `elsewhere`: with the mask of a load go the moves that clear its registers.

    Only where 8 divides D; else cells are read one channel at a time and need their masks.
    """
    return tl.multiple_of(tl.where(wanted, place, elsewhere), 8) if D % 8 == 0 else place


@triton.jit
def noise(call, counter):
    """u of the cells that the generator calls `call` serve; `counter` = (step, sample id low, high, key low, high)."""
    step, id_low, id_high, key_low, key_high = counter
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


@triton.jit
def _load_quad(cells, mask, CLEARED: tl.constexpr):
    """Four neighbouring 32-bit words from each address."""
    addresses = cells[:, None] + tl.arange(0, 4)[None, :]
    quad = tl.load(addresses, mask=mask[:, None], other=0) if CLEARED else tl.load(addresses)
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], 2, 2]))
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
def load(cells, channel, mask, D: tl.constexpr, CLEARED: tl.constexpr):
    """The channels of each cell as float32; outside the mask and the row they are 0 if CLEARED, else anything.

    Not CLEARED, cells outside the mask are read where 8 divides D: clearing registers for them costs instructions.
    """
    DTYPE: tl.constexpr = cells.dtype.element_ty
    if D % 8 != 0:
        values = ()
        for i in tl.static_range(8):
            here = _inside(channel, i, mask, D)
            value = tl.load(cells + i, mask=here, other=0) if CLEARED else tl.load(cells + i, mask=here)
            values = values + (value.to(tl.float32),)
        return values
    elif tl.float32 == DTYPE:
        return _load_quad(cells, mask, CLEARED) + _load_quad(cells + 4, mask, CLEARED)
    else:
        words = cells.to(tl.pointer_type(tl.uint32), bitcast=True)
        w0, w1, w2, w3 = _load_quad(words, mask, CLEARED)
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
def store(cells, x, channel, mask, D: tl.constexpr):
    """Round the channels of each cell to the output's dtype and write them, 128 bits at a time where D allows it."""
    DTYPE: tl.constexpr = cells.dtype.element_ty
    if D % 8 != 0:
        for i in tl.static_range(8):
            tl.store(cells + i, _narrow(x[i], DTYPE), mask=_inside(channel, i, mask, D))
    else:
        count: tl.constexpr = mask.shape[0]
        if tl.float32 == DTYPE:
            addresses = cells[:, None] + tl.arange(0, 4)[None, :]
            first = tl.reshape(_join_quad(x[0], x[1], x[2], x[3]), [count, 4])
            last = tl.reshape(_join_quad(x[4], x[5], x[6], x[7]), [count, 4])
            tl.store(addresses, first, mask=mask[:, None])
            tl.store(addresses + 4, last, mask=mask[:, None])
        else:
            addresses = cells[:, None] + tl.arange(0, 8)[None, :]
            even = _join_quad(x[0], x[2], x[4], x[6])
            odd = _join_quad(x[1], x[3], x[5], x[7])
            values = tl.reshape(tl.join(even, odd), [count, 8])
            tl.store(addresses, _narrow(values, DTYPE), mask=mask[:, None])
