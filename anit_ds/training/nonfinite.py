"""Steps from which nothing was learned: a loss or a gradient that is NaN or infinite.

DeepSpeed throws such a gradient away (engine.py), so the weights stay whole. What is left to do is to say it: the first
few steps by name, then now and then how many, and at the end whether the run has anything to show.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from anit_ds.config import TrainConfig

logger = logging.getLogger(__name__)

_NAMED = 5


@dataclass
class LostSteps:
    """Counts of a run's optimizer steps; the same on every rank.

    `float16`: whether a loss scaler looks for its scale, whose skipped steps are no fault and are counted apart.
    """

    float16: bool
    finite: int = 0
    nonfinite: int = 0
    scaler_skips: int = 0
    first: int = 0
    """The first step that was not finite, from 1; 0 for none."""
    in_a_row: int = 0
    """How many of the last steps were not finite."""

    def note(self, step: int, line: Mapping[str, float], datasets: str) -> None:
        """Take a step's global statistics in. `datasets` names the data sets in its batch."""
        odd = [name for name, value in line.items() if name.startswith("loss/") and not math.isfinite(value)]
        skipped = not math.isfinite(line["grad_norm"])
        if skipped and self.float16 and not odd:
            self.scaler_skips += 1
            return
        if not odd and not skipped:
            self.finite, self.in_a_row = self.finite + 1, 0
            return
        self.nonfinite, self.in_a_row, self.first = self.nonfinite + 1, self.in_a_row + 1, self.first or step
        if self.nonfinite <= _NAMED:
            what = ", ".join([*odd, *(["the gradient"] if skipped else [])])
            so = "skipped" if skipped else "taken all the same, for its gradient is finite"
            logger.warning("step %d (%s): not finite: %s; the step is %s", step, datasets, what, so)
        elif (self.nonfinite & (self.nonfinite - 1)) == 0:  # 8, 16, 32, ...
            logger.warning("step %d: %d steps were not finite so far", step, self.nonfinite)

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "float16"}

    def hopeless(self, *, an_epoch: int, total: int) -> bool:
        """Whether no batch is left to try: weights that nothing moves gave no finite loss for a whole epoch."""
        return self.in_a_row > 0 and self.in_a_row >= min(an_epoch, total - 1)

    def why_nothing_was_learned(self, steps: int, train: TrainConfig, dtype: str) -> str:
        """What to tell the user of a run without an adapter to keep, and what to try."""
        what = f"{self.nonfinite} of {steps} steps (from step {self.first} on) had none"
        if not self.finite:
            what = f"not one of {steps} steps had one"
        elif not self.nonfinite:
            what = "all steps had one, but after them no dev answer has a finite probability"
        cure = "" if dtype == "float32" else ", or model.dtype=float32"
        return (
            f"training found no finite loss and gradient: {what}; there is no adapter to keep. Try a smaller train.lr "
            f"(it is {train.lr:g}, with train.grad_clip {train.grad_clip:g} in {dtype}){cure}, and look for texts or "
            "weights that are broken"
        )
