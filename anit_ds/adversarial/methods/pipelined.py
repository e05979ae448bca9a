"""`schedule: pipelined`: NRM where the attack on the next micro-batch rides in the training pass of this one.

    alone     attack rows 1
    together  training rows 1 + attack rows 2
    together  training rows 2 + attack rows 3
    ...
    alone     training rows G

Parameters do not move inside an accumulation window, so each attack finds the very weights it would have found in a
pass of its own, and the result is that of three passes. G micro-batches take G + 1 sweeps over the parameters, forward
and backward, where attack and training one after the other take 2G: at ZeRO-3 a sweep is what is gathered from the
other ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.join import tokens_in_join
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.partly_trained import PartlyTrainedLora
from anit_ds.adversarial.perturb import AttackPoint, PerturbableLM
from anit_ds.adversarial.stats import StepStats


class PipelinedNRM(NRM):
    """NRM with joined passes and a gradient of its own: arguments as NRM's, those two at their defaults.

    Call `attach(lm)` once and `foresee(batch)` before each `backward`.
    LoRA's dropout is on in the training rows and off in the attack rows, as in NRM.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.loss != "ce":
            raise ValueError(f"loss: {self.loss} needs three passes, one after the other")
        self._lora: PartlyTrainedLora | None = None
        self._upcoming: Batch | None = None
        self._attacked: tuple[Batch, Tensor, Tensor] | None = None

    def attach(self, lm: PerturbableLM) -> None:
        """Teach the model's LoRA layers which rows to learn from. Raises InputError where they cannot."""
        self._lora = PartlyTrainedLora(lm.module)

    def foresee(self, upcoming: Batch | None) -> None:
        """The micro-batch after the next one to be trained on; None where the optimizer steps in between."""
        self._upcoming = upcoming

    def backward(self, lm: PerturbableLM, batch: Batch) -> StepStats:
        e, g = self._attack(lm, batch)
        x1, nrm = self._step(g, e, batch)
        upcoming, self._upcoming = self._upcoming, None
        losses = self._train(lm, batch, x1) if upcoming is None else self._train_and_attack(lm, batch, x1, upcoming)
        return self._stats(batch, losses, e, nrm, lm.attack_scale(e))

    def _attack(self, lm: PerturbableLM, batch: Batch) -> tuple[Tensor, Tensor]:
        """(e, g) of the batch: those that the last training pass brought along, or from a pass of their own."""
        attacked, self._attacked = self._attacked, None
        if attacked is not None and attacked[0] is batch:
            return attacked[1:]
        e, _, g = lm.input_gradient(batch, lambda e: self._start(e, batch))
        return e, g

    def _train_and_attack(self, lm: PerturbableLM, batch: Batch, x1: Tensor, upcoming: Batch) -> dict[str, Tensor]:
        assert self._lora is not None, "attach(lm) comes before the first backward"
        point = AttackPoint(lambda e: self._start(e, upcoming))
        clean_rows, adversarial_rows, attack_rows = tokens_in_join([batch, batch, upcoming])
        learned = clean_rows + adversarial_rows
        with self._lora.learning_from(learned, of=learned + attack_rows):
            clean, adversarial, attack = lm.losses_of([(batch, None), (batch, x1), (upcoming, point)])
            loss = (clean.sum() + self.lambda_ * adversarial.sum()) / batch.mean_over
            lm.backward(loss + _WithGradient.apply(attack.sum(), lm.attack_scale(x1)))
        assert point.x.grad is not None
        self._attacked = (upcoming, point.e, point.x.grad)
        return {"clean": clean, "adversarial": adversarial}


class _WithGradient(torch.autograd.Function):
    """A loss that adds 0 to a sum and is backpropagated with a gradient of `scale`, whatever the sum is multiplied by.

    DeepSpeed divides a loss by the accumulation steps and multiplies it by float16's loss scale; the attack's gradient
    is to be the one that `PerturbableLM.input_gradient` returns, in its norm as well.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return torch.zeros_like(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(grads[0], ctx.scale), None
