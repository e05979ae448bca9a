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
    """A layer's keys and values [B, heads, L, width], the first L columns of two `rooms` [B, heads, L + spare, width].

    transformers' own copies everything at every token. Every layer is of this kind, a sliding one too: it then keeps
    all its keys and values, and the mask alone says which are seen.
    """

    def __init__(self, rooms: Sequence[Tensor] = (), length: int = 0) -> None:
        super().__init__()
        self.rooms = list(rooms)
        if rooms:
            self.lazy_initialization(*rooms)
            self.hold(length)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [key_states[..., :0, :], value_states[..., :0, :]]
            self.hold(0)
        held = cast(Tensor, self.keys).shape[-2]
        length = held + key_states.shape[-2]
        if self.rooms[0].shape[-2] < length:
            self.rooms = [pad(room[..., :held, :], (0, 0, 0, length - held + _SPARE)) for room in self.rooms]
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., held:length, :] = states
        return self.hold(length)

    def hold(self, length: int) -> tuple[Tensor, Tensor]:
        """Make the first `length` columns of the rooms the keys and values."""
        self.keys, self.values = (room[..., :length, :] for room in self.rooms)
        return self.keys, self.values


class Rows:
    """A batch's keys and values, and its rows' lengths in tokens; as wide as its longest row."""

    def __init__(self, cache: Cache, lengths: list[int]) -> None:
        self.cache, self.lengths = cache, lengths

    @classmethod
    def empty(cls, size: int) -> Rows:
        return cls(Cache(layer_class_to_replicate=GrowingLayer), [0] * size)

    @classmethod
    def _of(cls, layers: Iterable[Sequence[Tensor]], lengths: list[int]) -> Rows:
        return cls(Cache(layers=[GrowingLayer(rooms, max(lengths)) for rooms in layers]), lengths)

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def layers(self) -> list[GrowingLayer]:
        """Empty where nothing has been read."""
        return cast(list[GrowingLayer], self.cache.layers)

    def attended(self, device: torch.device) -> Tensor:
        """[B, L] bool: the columns that hold a token of the row."""
        lengths = torch.tensor(self.lengths, device=device).unsqueeze(1)
        return torch.arange(self.width, device=device) >= self.width - lengths

    def grown(self, by: Sequence[int]) -> Rows:
        """After a pass over more columns, of which row b's first `by[b]` are its own."""
        lengths = [had + more for had, more in zip(self.lengths, by, strict=True)]
        if min(by) == max(by):
            for layer in self.layers:
                layer.hold(max(lengths))
            return Rows(self.cache, lengths)
        ends = [self.width + more for more in by]
        return Rows._of(self._moved(range(len(by)), ends, max(lengths)), lengths)

    def chosen(self, rows: Sequence[int], *, without_last: bool = False) -> Rows:
        """Copies of some rows, each as often as it is named; without their last token if asked."""
        lengths = [self.lengths[row] - without_last for row in rows]
        if max(lengths) == 0:
            return Rows.empty(len(lengths))
        return Rows._of(self._moved(rows, [self.width - without_last] * len(rows), max(lengths)), lengths)

    def repeated(self, times: int) -> Rows:
        """The only row several times, without a copy and without spare columns, which all would share."""
        if not self.layers:
            return Rows.empty(times)
        expanded = (
            [room[..., : self.width, :].expand(times, -1, -1, -1) for room in layer.rooms] for layer in self.layers
        )
        return Rows._of(expanded, self.lengths * times)

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of several batches, one after the other. Not all of them may be empty."""
        lengths = [length for part in parts for length in part.lengths]
        layers = next(part.layers for part in parts if part.layers)
        moved = [
            list(part._moved(range(len(part.lengths)), [part.width] * len(part.lengths), max(lengths)))
            if part.layers
            else [[_nothing(room, len(part.lengths), max(lengths)) for room in layer.rooms] for layer in layers]
            for part in parts
        ]
        return Rows._of(
            ([torch.cat(of) for of in zip(*rooms, strict=True)] for rooms in zip(*moved, strict=True)), lengths
        )

    def _moved(self, rows: Sequence[int], ends: Sequence[int], width: int) -> Iterable[list[Tensor]]:
        """For each layer rooms of their own, in which the columns before ends[i] of row rows[i] end at `width`."""
        for layer in self.layers:
            _, heads, columns, _ = layer.rooms[0].shape
            device = layer.rooms[0].device
            # What falls outside a row's tokens is a gap or spare; any number may stand there.
            shift = torch.tensor([end - width for end in ends], device=device)
            column = (shift[:, None] + torch.arange(width + _SPARE, device=device)).clamp(0, columns - 1)
            line = torch.tensor(rows, device=device)[:, None] * heads + torch.arange(heads, device=device)
            # Whole lines of memory by one index: `gather`, number by number, takes twenty times as long on a CPU.
            index = (line[:, :, None] * columns + column[:, None, :]).flatten()
            yield [
                room.reshape(-1, room.shape[-1]).index_select(0, index).view(len(rows), heads, -1, room.shape[-1])
                for room in layer.rooms
            ]


def _nothing(room: Tensor, rows: int, width: int) -> Tensor:
    return room.new_zeros(rows, room.shape[1], width + _SPARE, room.shape[3])
