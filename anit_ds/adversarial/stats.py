"""`StepStats`: what a step has to say, as sums and weights that stay on the device until somebody asks.

A statistic is a weighted mean. Keeping sum and weight apart makes micro-batches, accumulation and ranks add up to the
global figure, and keeps `.item()`, which waits for the device, out of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch


class StepStats(dict[str, Tensor]):
    """Name -> float32 pair [2]: (weighted sum of the values, sum of the weights)."""

    def over_samples(self, name: str, values: Tensor, counted: Tensor) -> None:
        """The mean of `values` [B] over the samples where `counted` [B] is true."""
        # A sample that does not count may hold NaN (nothing in scope): it must not reach the sum.
        self._add(name, torch.where(counted, values.float(), 0.0).sum(), counted.float().sum())

    def over_answers(self, name: str, losses: Tensor, batch: Batch) -> None:
        """The mean loss of an answer token, from each sample's summed loss [B]."""
        self._add(name, losses.detach().float().sum(), losses.new_tensor(float(len(batch.target_ids))).float())

    def _add(self, name: str, total: Tensor, weight: Tensor) -> None:
        pair = torch.stack([total, weight])
        self[name] = self[name] + pair if name in self else pair

    def merge(self, other: StepStats) -> None:
        """Add another micro-batch's statistics to these."""
        for name, pair in other.items():
            self[name] = self[name] + pair if name in self else pair
