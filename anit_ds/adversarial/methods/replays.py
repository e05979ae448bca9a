"""What one replay of a minibatch leaves for the next, where each minibatch is stepped on several times in a row."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from anit_ds.adversarial.batch import Batch


class Carried:
    """Tensors for each micro-batch, the first of [rows, T, ...], first in first out.

    Replay number batch.step % `replays` of a minibatch expects its micro-batches in the order of the replay before.
    """

    def __init__(self, replays: int) -> None:
        self.replays = replays
        self._kept: deque[tuple[Tensor, ...]] = deque()
        self._step = -1

    def keep(self, *values: Tensor) -> None:
        self._kept.append(values)

    def take(self, batch: Batch) -> tuple[Tensor, ...] | None:
        """What the replay before kept of this micro-batch; None where a minibatch begins. Raises ValueError where that
        is plainly another one (asking the device whether it has the same tokens would make it wait)."""
        if batch.step % self.replays:
            if not self._kept or self._kept[0][0].shape[:2] != batch.input_ids.shape:
                raise ValueError(
                    f"step {batch.step}: a method with {self.replays} replays is given the same minibatch for "
                    f"{self.replays} steps in a row, from a multiple of {self.replays} on"
                )
            return self._kept.popleft()
        if batch.step != self._step:  # a new minibatch: what its predecessor left is of no use
            self._kept.clear()
            self._step = batch.step
        return None
