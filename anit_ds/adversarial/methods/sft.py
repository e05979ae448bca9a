"""`sft`: the answer loss on the clean embeddings and nothing else, what every other method is compared with.

`noisy_sft` is this same step on noisy instructions: the noise is in the data (docs/method.md section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


class SFT(Method):
    """L(e); one pass."""

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        return cls()

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        (clean,) = lm.losses(batch)
        lm.backward(clean.sum() / batch.mean_over)
        return StepStats.of(batch, clean=clean)
