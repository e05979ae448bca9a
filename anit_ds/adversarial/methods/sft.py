"""`sft`: the answer loss on the clean embeddings and nothing else, what every other method is compared with.

`noisy_sft` is this same step on noisy instructions: the noise is in the data (method.md section 5).
"""

from __future__ import annotations

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats


class SFT:
    """L(e); one pass."""

    passes = 1

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        (clean,) = lm.losses(batch)
        lm.backward(clean.sum() / batch.mean_over)
        stats = StepStats()
        stats.over_answers("loss/clean", clean, batch)
        return stats
