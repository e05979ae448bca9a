"""`Rows`: the keys and values of a batch of texts that grow by different numbers of tokens, leave and join.

Every row ends in the last column; what stands before its first token is a gap that no token looks at. So tokens of a
row are neighbours, and attention that masks by distance (sliding windows) sees true distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_SPARE = 32


class GrowingLayer(DynamicLayer):
    """A layer's keys and values [B, heads, L, width] with room for more tokens behind them.

    transformers' own copies everything at every token. Every layer is of this kind, a sliding one too: it then keeps
    all its keys and values, and the mask alone says which are seen.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self._room: list[Tensor] | None = None
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        held, more = self.keys.shape[-2], key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < held + more:
            self._room = [pad(t, (0, 0, 0, more + _SPARE)) for t in (self.keys, self.values)]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., held : held + more, :] = states
        self.keys, self.values = (room[..., : held + more, :] for room in self._room)
        return self.keys, self.values


class Rows:
    """A batch's keys and values, its rows' lengths in tokens, and where each stands: in the last `lengths[b]` columns.

    As wide as its longest row.
    """

    def __init__(self, cache: Cache, lengths: list[int]) -> None:
        self.cache, self.lengths = cache, lengths

    @classmethod
    def empty(cls, size: int) -> Rows:
        return cls(Cache(layer_class_to_replicate=GrowingLayer), [0] * size)

    @classmethod
    def of(cls, layers: Iterable[tuple[Tensor, Tensor]], lengths: list[int]) -> Rows:
        return cls(Cache(layers=[GrowingLayer(*layer) for layer in layers]), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, heads, L, width] of each layer; none where nothing has been read."""
        return [(layer.keys, layer.values) for layer in cast(list[Any], self.cache.layers)]

    def attended(self, device: torch.device) -> Tensor:
        """[B, L] bool: the columns that hold a token of the row."""
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return torch.arange(self.width, device=device) >= self.width - lengths

    def grown(self, by: Sequence[int]) -> Rows:
        """After a pass over `max(by)` more columns of which row b's first `by[b]` are its own: all rows end at the
        last column again."""
        lengths = [had + more for had, more in zip(self.lengths, by, strict=True)]
        grown = Rows(self.cache, lengths)
        if min(by) == max(by):
            return grown
        columns = self.width + max(by)
        device = self.layers[0][0].device
        ends = torch.tensor([columns - max(by) + more for more in by], device=device)
        index = (ends.unsqueeze(1) - grown.width + torch.arange(grown.width, device=device)).clamp(min=0)
        return Rows.of(((_gather(k, index), _gather(v, index)) for k, v in self.layers), lengths)

    def chosen(self, rows: Sequence[int], *, without_last: bool = False) -> Rows:
        """Copies of some rows, each as often as it is named; without their last token if asked."""
        lengths = [self.lengths[row] - without_last for row in rows]
        if not rows or max(lengths) == 0:
            return Rows.empty(len(lengths))
        stop = self.width - without_last
        start = stop - max(lengths)
        index = torch.tensor(rows, device=self.layers[0][0].device)
        return Rows.of(((k[index, :, start:stop], v[index, :, start:stop]) for k, v in self.layers), lengths)

    def repeated(self, times: int) -> Rows:
        """The only row several times, without a copy."""
        if not self.layers:
            return Rows.empty(times)
        expanded = ((k.expand(times, -1, -1, -1), v.expand(times, -1, -1, -1)) for k, v in self.layers)
        return Rows.of(expanded, self.lengths * times)

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of several batches, one after the other. Not all of them may be empty."""
        lengths = [length for part in parts for length in part.lengths]
        some = next(part for part in parts if part.layers)
        layers = []
        for number, like in enumerate(some.layers):
            given = [
                part.layers[number] if part.layers else [t[:1, :, :0].expand(len(part), -1, -1, -1) for t in like]
                for part in parts
            ]
            keys, values = (
                torch.cat([pad(t, (0, 0, max(lengths) - t.shape[-2], 0)) for t in kind])
                for kind in zip(*given, strict=True)
            )
            layers.append((keys, values))
        return Rows.of(layers, lengths)


def _gather(states: Tensor, index: Tensor) -> Tensor:
    """states [B, heads, L, width] at the columns index [B, L'] of each row"""
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
