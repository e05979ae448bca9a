"""Several batches in one forward pass: `join` lays them together, `split_tokens` takes their embeddings apart again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from anit_ds.adversarial.batch import Batch


def join(batches: Sequence[Batch]) -> Batch:
    """One batch with the samples of several, all padded (the rows widened to the longest) or all packed."""
    first = batches[0]
    if len(batches) == 1:
        return first
    before = _running_sums([b.size for b in batches])
    tokens_before = _running_sums([0 if b.lengths is None else b.input_ids.shape[1] for b in batches])
    lengths, cu_seqlens = None, None
    if first.lengths is not None:
        lengths = tuple(n for b in batches for n in b.lengths or ())
        ends = [b.cu_seqlens[1:] + n for b, n in zip(batches, tokens_before, strict=True) if b.cu_seqlens is not None]
        cu_seqlens = F.pad(torch.cat(ends), (1, 0))
    return replace(
        first,
        input_ids=join_tokens([b.input_ids for b in batches], batches),
        attended=join_tokens([b.attended for b in batches], batches),
        scope=join_tokens([b.scope for b in batches], batches),
        sample_ids=torch.cat([b.sample_ids for b in batches]),
        beta=torch.cat([b.beta for b in batches]),
        target_rows=torch.cat([b.target_rows + n for b, n in zip(batches, before, strict=True)]),
        target_positions=torch.cat([b.target_positions + n for b, n in zip(batches, tokens_before, strict=True)]),
        target_ids=torch.cat([b.target_ids for b in batches]),
        right_padded=all(b.right_padded for b in batches),
        lengths=lengths,
        cu_seqlens=cu_seqlens,
    )


def join_tokens(values: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """values[i] [B_i, T_i, ...] of each batch as those of `join(batches)`; what widens a row is zero."""
    if batches[0].lengths is not None:
        return torch.cat(list(values), dim=1)
    width = max(v.shape[1] for v in values)
    return torch.cat([_widen(v, width) for v in values])


def split_tokens(values: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
    """The inverse of `join_tokens`, as views."""
    if batches[0].lengths is not None:
        return list(values.split([b.input_ids.shape[1] for b in batches], dim=1))
    rows = values.split([b.size for b in batches])
    return [v[:, : b.input_ids.shape[1]] for v, b in zip(rows, batches, strict=True)]


def tokens_in_join(batches: Sequence[Batch]) -> list[int]:
    """Tokens that each batch takes in `join(batches)`, padding included."""
    if batches[0].lengths is not None:
        return [b.input_ids.shape[1] for b in batches]
    width = max(b.input_ids.shape[1] for b in batches)
    return [b.size * width for b in batches]


def _widen(values: Tensor, width: int) -> Tensor:
    missing = width - values.shape[1]
    return F.pad(values, (0, 0) * (values.dim() - 2) + (0, missing)) if missing else values


def _running_sums(numbers: Sequence[int]) -> list[int]:
    """The sum of what stands before each number."""
    return [sum(numbers[:i]) for i in range(len(numbers))]
