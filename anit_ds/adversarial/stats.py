"""`StepStats`: a step's statistics, as sums and weights that stay on the device until somebody asks.

A statistic is a weighted mean. Keeping sum and weight apart makes micro-batches, accumulation and ranks add up to the
global figure, and keeps `.item()`, which waits for the device, out of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch


class StepStats(dict[str, Tensor]):
    """Name -> float32 pair [2]: (weighted sum of the values, sum of the weights)."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        *,
        clean: Tensor | None = None,
        adversarial: Tensor | None = None,
        consistency: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> StepStats:
        """What a method says at its end: its losses [S], and the norm of the last perturbation [B, T, D]."""
        stats = cls()
        if clean is not None:
            stats.over_answers("loss/clean", clean, batch)
        if adversarial is not None:
            stats.over_answers("loss/adversarial", adversarial, batch)
        if consistency is not None:
            stats.over_answers("loss/consistency", consistency, batch)
        if delta is not None:
            stats.over_samples("attack/delta_norm", batch.norm_per_sample(delta), batch.attacked)
        return stats

    def over_samples(self, name: str, values: Tensor, counted: Tensor) -> None:
        """The mean of `values` [B] over the samples where `counted` [B] is true."""
        # A sample that does not count may hold NaN (nothing in scope): it must not reach the sum.
        self._add(name, torch.where(counted, values.float(), 0.0).sum(), counted.float().sum())

    def over_answers(self, name: str, losses: Tensor, batch: Batch) -> None:
        """The mean loss of an answer token, from each sample's summed loss [B]."""
        # new_full and not new_tensor: a copy from the host would wait for the device.
        self._add(name, losses.detach().float().sum(), losses.new_full((), len(batch.target_ids), dtype=torch.float32))

    def _add(self, name: str, total: Tensor, weight: Tensor) -> None:
        pair = torch.stack([total, weight])
        self[name] = self[name] + pair if name in self else pair

    def merge(self, other: StepStats) -> None:
        """Add another micro-batch's statistics to these."""
        for name, pair in other.items():
            self[name] = self[name] + pair if name in self else pair
