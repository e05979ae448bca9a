"""The random numbers of delta0: Philox-4x32, a counter-based generator (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011).

A number is a pure function of (run seed, optimizer step, sample id, element of the sample), so it depends neither on
the batch a sample sits in, nor on the rank, the padding side, or the step a run was resumed at; and `nrm_step` can
draw delta0 a second time instead of storing it. This is the PyTorch form; `cells.philox_words` gives the same
words on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

# Seven rounds are the fewest of Philox-4x32 that pass BigCrush (Salmon et al., table 2); ten are their safety margin,
# which noise for a perturbation does not need, and each round costs half an instruction an element.
ROUNDS = 7

# The four 32-bit words of a call are read as eight 16-bit numbers: a grid of 65536 values is finer than the rounding of
# the bfloat16 embedding they are added to, and halves the cost of the generator, which is what binds on a fast GPU.
UNIFORMS_A_CALL = 8

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
WORD_MASK = 0xFFFFFFFF

Word = TypeVar("Word", int, Tensor, int | Tensor)


def philox_4x32(counter: Sequence[Word], key: tuple[int, int], rounds: int = ROUNDS) -> tuple[Word, Word, Word, Word]:
    """Four 32-bit words from a counter of four 32-bit words and a key of two.

    A counter word is a Python int, or an int64 tensor that holds values below 2**32; ints and tensors mix and
    broadcast, and what depends on ints alone is computed once. The result is of the same kinds.
    """
    c0, c1, c2, c3 = counter
    for i in range(rounds):
        key0 = (key[0] + i * KEY_INCREMENTS[0]) & WORD_MASK
        key1 = (key[1] + i * KEY_INCREMENTS[1]) & WORD_MASK
        # In int64 the 64-bit product wraps to the right bits; the mask undoes the sign that the shift copies down.
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD_MASK) ^ c1 ^ key0,
            product1 & WORD_MASK,
            ((product0 >> 32) & WORD_MASK) ^ c3 ^ key1,
            product0 & WORD_MASK,
        )
    return c0, c1, c2, c3


def split_words(value: int) -> tuple[int, int]:
    """The low and the high 32 bits of a 64-bit integer, signed or not."""
    return value & WORD_MASK, (value >> 32) & WORD_MASK


def uniforms(count: int, seed: int, step: int, sample_id: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `count` uniforms of one sample, float32 [count], each an odd multiple of 2**-16 in (-1, 1).

    Element j comes from the call with counter (j // 8, step, sample id low, sample id high) and key = seed; the even
    elements of a call are the low halves k of its four words in order, the odd ones the high halves;
    u = (k - 32767.5) / 32768, which float32 holds exactly (docs/method.md section 4).
    """
    calls = -(-count // UNIFORMS_A_CALL)
    counter: tuple[int | Tensor, ...] = (torch.arange(calls, device=device), step, *split_words(sample_id))
    words = torch.empty(calls, 4, dtype=torch.int32, device=device)
    for i, word in enumerate(philox_4x32(counter, split_words(seed))):
        words[:, i] = word  # Keeps the low 32 bits.
    halves = words.view(torch.int16).flatten()[:count]  # Little-endian: the low half of a word comes first.
    # A signed half s stands for k = s, or s + 65536 below zero: flipping the top bit gives k - 32768 either way.
    return (halves ^ -32768).to(torch.float32).add_(0.5).mul_(1.0 / 32768.0)
