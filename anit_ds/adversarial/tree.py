"""The tree of a micro-batch: which leading tokens its samples share, and how a pass lays each of them down once.

Samples of one task begin alike: question, format and options where the instruction stands last, the whole instruction
where it stands first and is not noisy. Such a run of tokens is the same computation for all of them in a causal model.
`TreeBatch.of` finds the runs from the tokens themselves, on the host, where the batch is made:

    whole     every sample, shared runs once                    a pass over clean embeddings
    apart     every sample by itself, or behind the trunk       a pass over perturbed ones
    trunk     what stands before the first perturbed token      kept by the first pass that needs it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.layout import Layout

# Fewer shared tokens than this cost more in attention's extra blocks than they save.
SHORTEST_SHARED = 8


class Run(NamedTuple):
    """Tokens [start, stop) of a sample, and the numbers of the runs that stand before them."""

    sample: int
    start: int
    stop: int
    chain: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What one pass lays in its row. Index, position and target are on the batch's device, the layout on the host."""

    index: Tensor  # [n] int64: which token of the packed batch stands at each place
    positions: Tensor  # [n] int64: its place in its sample
    targets: Tensor  # [A] int64: where each of the batch's predicting positions stands in the row
    layout: Layout

    def to(self, device: torch.device | str) -> Row:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("index", "positions", "targets")}
        return replace(self, **moved)


def grow(tokens: Sequence[np.ndarray], limits: Sequence[int], stops: Sequence[int]) -> tuple[list[Run], list[int]]:
    """The runs of some samples, depth first: (runs, for each sample the number of its last one, -1 for none).

    tokens: each sample's ids. limits: how many of its leading tokens a sample may share. stops: where its last run
    ends; a sample that ends where its shared run does has no run of its own.
    """
    runs: list[Run] = []
    last = [-1] * len(tokens)

    def branch(members: list[int], depth: int, chain: tuple[int, ...]) -> None:
        shared = _common(tokens, members, depth, min(limits[m] for m in members)) if len(members) > 1 else depth
        if shared - depth >= SHORTEST_SHARED:
            runs.append(Run(members[0], depth, shared, chain))
            depth, chain = shared, (*chain, len(runs) - 1)
        for group in _alike(tokens, members, limits, depth) if len(members) > 1 else [members]:
            if len(group) > 1:
                branch(group, depth, chain)
                continue
            (member,) = group
            if stops[member] > depth:
                runs.append(Run(member, depth, stops[member], chain))
                last[member] = len(runs) - 1
            else:
                last[member] = chain[-1] if chain else -1

    branch(list(range(len(tokens))), 0, ())
    return runs, last


def _common(tokens: Sequence[np.ndarray], members: list[int], depth: int, limit: int) -> int:
    """Where the members' tokens part, at `limit` the latest."""
    first = tokens[members[0]][depth:limit]
    for member in members[1:]:
        unlike = np.flatnonzero(tokens[member][depth:limit][: len(first)] != first)
        first = first[: unlike[0]] if len(unlike) else first
    return depth + len(first)


def _alike(tokens: Sequence[np.ndarray], members: list[int], limits: Sequence[int], depth: int) -> Iterator[list[int]]:
    """The members in groups that go on with the same SHORTEST_SHARED tokens at least, in order of their first."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for member in members:
        long_enough = limits[member] - depth >= SHORTEST_SHARED
        ahead = tokens[member][depth : depth + SHORTEST_SHARED].tobytes() if long_enough else member
        groups[ahead].append(member)
    yield from groups.values()


@dataclass(frozen=True, kw_only=True)
class TreeBatch(Batch):
    """A packed batch whose passes lay shared runs of tokens down once."""

    whole: Row
    apart: Row
    trunk: Row | None = None

    @classmethod
    def of(cls, batch: Batch, *, keeps_trunk: bool | None = None) -> TreeBatch:
        """Find the runs of a batch, which is packed first where it is padded; do it on the CPU.

        keeps_trunk: whether what stands before the scope is a pass of its own, whose keys and values the passes of a
        step share. By default where there is such a thing; several ranks must all do it or none (then true gives a
        batch without any a trunk of one token that nobody sees).
        """
        batch = batch.packed()
        assert batch.lengths is not None
        offsets = [stop - length for stop, length in zip(accumulate(batch.lengths), batch.lengths, strict=True)]
        ids = batch.input_ids[0].numpy()
        tokens = [ids[o : o + n] for o, n in zip(offsets, batch.lengths, strict=True)]
        first_target = _first_targets(batch, offsets)
        limits = [min(first, n - 1) for first, n in zip(first_target, batch.lengths, strict=True)]
        starts = _scope_starts(batch, offsets, limits)
        trunk_runs, last = grow(tokens, [min(pair) for pair in zip(starts, limits, strict=True)], starts)
        if not (bool(trunk_runs) if keeps_trunk is None else keeps_trunk):
            runs, _ = grow(tokens, limits, batch.lengths)
            alone = [Run(sample, 0, length, ()) for sample, length in enumerate(batch.lengths)]
            return cls(**vars(batch), whole=_row(batch, runs, offsets), apart=_row(batch, alone, offsets))
        if late := [s for s, start in enumerate(starts) if start > first_target[s]]:
            raise ValueError(
                f"sample {late[0]}: a token before the scope predicts one of the answer; put the perturbed tokens last"
            )
        trunk_runs = trunk_runs or [Run(0, 0, 1, ())]  # other ranks have one to run, so this one does
        chains = [() if end < 0 else (*trunk_runs[end].chain, end) for end in last]
        order = sorted(range(batch.size), key=lambda s: (last[s], s))
        behind = [Run(s, starts[s], batch.lengths[s], chains[s]) for s in order]
        row = _row(batch, behind, offsets, tuple(run.stop - run.start for run in trunk_runs))
        return cls(**vars(batch), whole=row, apart=row, trunk=_row(batch, trunk_runs, offsets))

    def to(self, device: torch.device | str) -> TreeBatch:
        moved = super().to(device)
        assert isinstance(moved, TreeBatch)
        trunk = None if self.trunk is None else self.trunk.to(device)
        return replace(moved, whole=self.whole.to(device), apart=self.apart.to(device), trunk=trunk)


def _first_targets(batch: Batch, offsets: Sequence[int]) -> list[int]:
    """Of each sample the place of the token that predicts its first answer token, whose hidden state is read and which
    is not shared; its length where it has no answer."""
    assert batch.lengths is not None
    first = list(batch.lengths)
    for sample, place in zip(batch.target_rows.tolist(), batch.target_positions.tolist(), strict=True):
        first[sample] = min(first[sample], place - offsets[sample])
    return first


def _scope_starts(batch: Batch, offsets: Sequence[int], limits: Sequence[int]) -> list[int]:
    """How many tokens of each sample stand before its first one in scope; all it may share where it has no scope."""
    assert batch.lengths is not None
    scope = batch.scope[0].numpy()
    parts = [scope[o : o + n] for o, n in zip(offsets, batch.lengths, strict=True)]
    return [int(part.argmax()) if part.any() else most for part, most in zip(parts, limits, strict=True)]


def _row(batch: Batch, runs: Sequence[Run], offsets: Sequence[int], kept: tuple[int, ...] = ()) -> Row:
    index = np.concatenate([np.arange(offsets[r.sample] + r.start, offsets[r.sample] + r.stop) for r in runs])
    positions = np.concatenate([np.arange(r.start, r.stop) for r in runs])
    # A predicting position stands in its own sample's last run, so this place is the only one with its token.
    place = np.zeros(batch.input_ids.shape[1], dtype=np.int64)
    place[index] = np.arange(len(index))
    return Row(
        index=torch.from_numpy(index),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(place)[batch.target_positions],
        layout=Layout(tuple(r.stop - r.start for r in runs), tuple(r.chain for r in runs), kept),
    )


def lay_together(rows: Sequence[Row]) -> Row:
    """Several rows on the same kept runs as one, each to itself."""
    if len(rows) == 1:
        return rows[0]
    kept = rows[0].layout.kept
    before, shift = len(kept), 0
    lengths: list[int] = []
    chains: list[tuple[int, ...]] = []
    targets: list[Tensor] = []
    for row in rows:
        moved = len(lengths)
        chains += [
            tuple(j if j < before else j + moved for j in row.layout.chain(i)) for i in range(len(row.layout.lengths))
        ]
        lengths += row.layout.lengths
        targets.append(row.targets + shift)
        shift += row.layout.tokens
    return Row(
        index=torch.cat([row.index for row in rows]),
        positions=torch.cat([row.positions for row in rows]),
        targets=torch.cat(targets),
        layout=Layout(tuple(lengths), tuple(chains), kept),
    )
