"""`Layout`: which tokens of a packed row see which: a block-sparse pattern of attention, as runs of tokens.

Samples laid end to end are runs without chains. Samples that begin alike are a tree: the run they share stands once,
and each sample's own run names it in its chain. A run sees its chain whole and itself causally. Runs of an earlier
pass, whose keys and values were kept, come first in the numbering and take no place in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Queries [start, stop) of the row against keys [first, end) of [kept; row]."""

    start: int
    stop: int
    first: int
    end: int
    causal: bool


@dataclass(frozen=True)
class Layout:
    """The runs of one packed row. Runs are numbered from 0: first the kept ones, then the row's own."""

    lengths: tuple[int, ...]  # tokens of each run of the row, in the row's order
    chains: tuple[tuple[int, ...], ...] = ()  # for each of them the runs before it; empty: none has any
    kept: tuple[int, ...] = ()  # tokens of each run whose keys and values an earlier pass kept

    def chain(self, number: int) -> tuple[int, ...]:
        """The runs before the row's run `number`."""
        return self.chains[number] if self.chains else ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def all_lengths(self) -> tuple[int, ...]:
        return self.kept + self.lengths

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Where each run, kept ones included, stands in [kept; row]."""
        stops = list(accumulate(self.all_lengths))
        return tuple((stop - length, stop) for stop, length in zip(stops, self.all_lengths, strict=True))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sample: a run with its chain."""
        return max(n + sum(self.all_lengths[j] for j in self.chain(i)) for i, n in enumerate(self.lengths))

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Every pair of queries and keys that attention has to join, in as few rectangles as the row's order allows."""
        shift = sum(self.kept)
        found = []
        for number in range(len(self.lengths)):
            first, end = self.places[len(self.kept) + number]
            found.append(Call(first - shift, end - shift, first, end, True))
        open_calls: dict[int, Call] = {}
        for number in range(len(self.lengths)):
            start, stop = (place - shift for place in self.places[len(self.kept) + number])
            for before in self.chain(number):
                last = open_calls.get(before)
                if last is not None and last.stop == start:
                    open_calls[before] = last._replace(stop=stop)
                    continue
                if last is not None:
                    found.append(last)
                open_calls[before] = Call(start, stop, *self.places[before], False)
        return (*found, *open_calls.values())

    def visible(self, window: int | None, device: torch.device) -> Tensor:
        """[row, kept + row] bool: the query sees the key; at most `window` tokens, itself included, where one is given.

        Quadratic in the row, so for devices where one large masked product is cheaper than many small ones.
        """
        return _visible(self, window, device)


@lru_cache(maxsize=8)
def _visible(layout: Layout, window: int | None, device: torch.device) -> Tensor:
    """Put together on the device from a few numbers a token: a mask of the host would be waited for in each pass."""
    kept, lengths = len(layout.kept), layout.all_lengths
    chained = [[False] * len(lengths) for _ in layout.lengths]
    shift = [0] * len(lengths)  # from a token's place in [kept; row] to its place in its sample
    for number in range(len(layout.lengths)):
        depth = 0
        for run in (*layout.chain(number), kept + number):
            chained[number][run], shift[run] = True, depth - layout.places[run][0]
            depth += lengths[run]
    run_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place_of = torch.arange(len(run_of)) + torch.tensor(shift)[run_of]
    runs, places, sees = (t.to(device, non_blocking=True) for t in (run_of, place_of, torch.tensor(chained)))
    queries = slice(len(runs) - layout.tokens, None)
    seen = sees[runs[queries] - kept][:, runs] & (places <= places[queries, None])
    return seen if window is None else seen & (places > places[queries, None] - window)


def banded(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool for the last `queries` of `keys` tokens: the token itself and what stands before it, at most
    `window` tokens in all."""
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return causal if window is None else causal.triu(keys - queries + 1 - window)
