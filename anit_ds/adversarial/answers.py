"""What is made of the logits at answer positions: each sample's cross-entropy, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from anit_ds.adversarial.batch import Batch


def answer_losses(logits: Tensor, batches: Sequence[Batch]) -> list[Tensor]:
    """Each batch's cross-entropy, summed over a sample's answer tokens [S], from all batches' logits [A, V]."""
    sizes = [batch.size for batch in batches]
    before = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
    samples = torch.cat([batch.target_rows + n for batch, n in zip(batches, before, strict=True)])
    losses = F.cross_entropy(logits, torch.cat([batch.target_ids for batch in batches]), reduction="none")
    return list(losses.new_zeros(sum(sizes)).index_add(0, samples, losses).split(sizes))


def divergence(one: Tensor, other: Tensor, batch: Batch) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 between the distributions of two logits [A, V], summed over a sample's answer
    tokens: [S].

    Gradients flow through both. SMART, Jiang et al., ACL 2020, and R3F, Aghajanyan et al., ICLR 2021, train on it.
    """
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    # The two sums over the vocabulary are one: p (log p - log q) + q (log q - log p) = (p - q)(log p - log q).
    apart = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2
    return apart.new_zeros(batch.size).index_add(0, batch.target_rows, apart)
