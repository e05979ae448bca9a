"""`Method`: the one interface that every way of training has."""

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


class Method(ABC):
    """A way of training: some forward-and-backward passes over a batch, which end with gradients in place.

    A loop calls `attach` once, then for each micro-batch `foresee` and `backward`. Most methods have nothing to do in
    the first two; a loop that knows its method may leave them out.

    replays: the optimizer steps in a row that it is to have on each minibatch, the r-th of them with
    `batch.step % replays == r`; more than 1 where one hands something on to the next.
    """

    replays: int = 1

    @classmethod
    def from_config(cls, config: MethodConfig, *, seed: int, unit: float) -> Self:
        """The method of a configuration; `unit` is what its eps and alpha are multiplied by (`eps_unit`)."""
        raise TypeError(f"no configuration names {cls.__name__}")

    def attach(self, lm: PerturbableLM) -> None:
        """Make the model ready. Raises InputError for a model that the method cannot train."""
        return None

    def foresee(self, upcoming: Batch | None) -> None:
        """The micro-batch after the one that comes next; None where the optimizer steps in between."""
        return None

    @abstractmethod
    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        """One micro-batch: its loss, backpropagated, and what there is to say about it."""
