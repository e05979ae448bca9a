"""`method.updates: alternating`: NRM with an optimizer step for each of eq. 8's losses, on the same minibatch (ours).

    step 2i        L(e)                     whose backward gives g, the gradient at e
    step 2i + 1    lambda * L(e + delta1)   delta1 from that g, eq. 5

One pass a step, so the two passes that `gradient: clean` spends on one step make two. Free adversarial training
(Shafahi et al., NeurIPS 2019) steps on a minibatch several times in a row too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.methods.replays import Carried
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats
from anit_kernels import NrmStats


class AlternatingNRM(NRM):
    """NRM whose g is one optimizer step old; arguments as NRM's, of which `passes` and `gradient` change nothing."""

    replays = 2

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.loss != "ce":
            raise ValueError(f"loss: {self.loss} compares two passes, and a step has one here")
        self._gradients = Carried(self.replays)

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        """One micro-batch of the term of eq. 8 whose turn it is, backpropagated."""
        before = self._gradients.take(batch)
        if before is None:
            _, g, clean, scale = lm.trained_input_gradient(batch, last=True)
            self._gradients.keep(g, scale)
            return StepStats.of(batch, clean=clean)
        g, scale = before
        seen: list[tuple[Tensor, NrmStats]] = []

        def stepped(e: Tensor) -> Tensor:
            x1, nrm = self._step(g, e, batch)
            seen.append((e, nrm))
            return x1

        (adversarial,) = lm.losses(batch, (stepped,))
        lm.backward(self.lambda_ * adversarial.sum() / batch.mean_over)
        ((e, nrm),) = seen
        return self._stats(batch, {"adversarial": adversarial}, e, nrm, scale)
