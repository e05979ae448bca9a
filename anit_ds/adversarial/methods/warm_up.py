"""`method.warmup`: the first steps of a run train on the clean loss alone, the rest with the method (ours).

An attack on a model that does not know the task yet teaches it noise, and a step without one is cheaper.
"""

from __future__ import annotations

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.methods.sft import SFT
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats


class WarmedUp(Method):
    """A method from optimizer step `until` on, counted from 0; before it the step of `sft`, in one pass."""

    def __init__(self, method: Method, *, until: int) -> None:
        self.method, self.until, self.replays = method, until, method.replays
        self._plain = SFT()

    def attach(self, lm: PerturbableLM) -> None:
        self.method.attach(lm)

    def foresee(self, upcoming: Batch | None) -> None:
        self.method.foresee(upcoming)

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        method = self._plain if batch.step < self.until else self.method
        return method.backward(lm, batch)
