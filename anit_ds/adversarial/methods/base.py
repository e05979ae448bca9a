"""What most methods share: nothing to prepare, nothing to foresee, and how a configuration makes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from anit_ds.config import MethodConfig


_CHOICES = {
    "ball": ("frobenius", "linf", "none"), "step": ("frobenius", "sign"), "loss": ("ce", "consistency"),
    "passes": ("joined", "separate"), "gradient": ("attack", "clean"),
}  # fmt: skip


def check_choices(**given: str) -> None:
    """Raises ValueError for a setting that none of the methods knows; a YAML's are checked before (MethodConfig)."""
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(_CHOICES[name])}")


class OneBatchAtATime(ABC):
    """A method that needs no more than the batch at hand.

    replays: the optimizer steps in a row that it is to have on each minibatch, the r-th of them with
    `batch.step % replays == r`; more than 1 where one hands something on to the next.
    """

    replays = 1

    @classmethod
    @abstractmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        """The method of a configuration; `unit` is what its eps and alpha are multiplied by (`eps_unit`)."""

    def attach(self, lm: PerturbableLM) -> None:
        return None

    def foresee(self, upcoming: Batch | None) -> None:
        return None

    @abstractmethod
    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        """One micro-batch, backpropagated."""
