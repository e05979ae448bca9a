"""What prompts have in common at their beginning, found from the tokens themselves.

The prompts of a split begin alike: with instruction, question, format and options in the paper's order, with all of
these but the instruction where it stands last. Under a noise the instructions differ, and so does what is common: all
prompts share one beginning, and those with the same instruction may share a longer one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# A prefix must save this many tokens, or it is not worth a pass and its place in memory; and no more than so many are
# kept: together they are about as long as the prompts of a batch.
_WORTH = 256
_MOST = 32


@dataclass(frozen=True)
class Prefixes:
    """Texts that prompts begin with (token ids), the first one empty; of each prompt, which one and what comes after.

    No rest is empty: a prompt's last token has an answer to predict.
    """

    texts: list[list[int]]
    which: list[int]
    rests: list[list[int]]


def shared_prefixes(prompts: Sequence[list[int]], worth: int = _WORTH) -> Prefixes:
    """What prompts share, as long as it saves `worth` tokens.

    A prefix costs its length once and saves, in each of its prompts, what it is longer than the prefix around it.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    common = [_common(prompts[a], prompts[b]) for a, b in pairwise(order)]  # of neighbours in that order
    texts: list[list[int]] = [[]]
    which = [0] * len(prompts)
    # Ranges of `order` in which all prompts share the first `known` tokens, the largest range first.
    ranges = [(-len(order), 0, len(order), 0)]
    while ranges and len(texts) <= _MOST:
        size, low, high, known = heapq.heappop(ranges)
        if size > -2:
            break
        alike = min(common[low : high - 1])
        # The first in order is the shortest of those that are alike to their end.
        length = min(alike, len(prompts[order[low]]) - 1)
        if (high - low) * (length - known) - length >= worth:
            for i in order[low:high]:
                which[i] = len(texts)
            texts.append(prompts[order[low]][:length])
            known = length
        cuts = [low, *(at + 1 for at in range(low, high - 1) if common[at] == alike), high]
        for a, b in pairwise(cuts):
            heapq.heappush(ranges, (a - b, a, b, known))
    return Prefixes(texts, which, [prompt[len(texts[at]) :] for prompt, at in zip(prompts, which, strict=True)])


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
