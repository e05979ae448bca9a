"""Any of the methods inside the Hugging Face `Trainer`, and so TRL's `SFTTrainer`: a mix-in before the trainer's class.

    class NRMTrainer(AdversarialTrainerMixin, SFTTrainer):
        pass

    trainer = NRMTrainer(model=model, args=args, train_dataset=dataset, method=NRM(eps=1.0, alpha=0.3, ball="linf"))
    trainer.train()

Only the step changes: the method's passes and backwards take the place of one loss. Optimizer, schedule, accumulation,
checkpoints and logging stay the trainer's; the method's statistics are logged beside its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.methods.nrm import NRM
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from accelerate import Accelerator

_KNOWN = ("NO", "MULTI_CPU", "MULTI_GPU")


class AdversarialTrainerMixin:
    """method: an object with `backward(lm, batch)`, such as NRM. beta: semantic distortion of every sample in [0, 1].

    A batch may hold `beta` and `sample_ids` [B] of its own (without the latter, delta0's random numbers follow from a
    sample's place in its batch). Attacked is the prompt: every attended token whose label is -100.
    Raises ValueError for a trainer under DeepSpeed or FSDP (`anit train` is for these), for packed batches, and for
    a method that steps on each minibatch several times (`freeat`, `updates: alternating`).
    """

    def __init__(self, *args: Any, method: Any = None, beta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerator: Accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.distributed_type.value not in _KNOWN:
            raise ValueError(
                f"{type(self).__name__} knows one process and DDP, not {accelerator.distributed_type.value}; for ZeRO "
                "use anit train"
            )
        self.method, self.beta = method or NRM(), beta
        if (replays := getattr(self.method, "replays", 1)) > 1:
            raise ValueError(
                f"{type(self.method).__name__} steps {replays} times on each minibatch, and this trainer "
                "takes a new one each time"
            )
        self._lm = _AcceleratedLM(self.model, accelerator)  # type: ignore[attr-defined]
        self._stats = StepStats()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch of the method, backpropagated. Returns its summed loss over the answer tokens of the step."""
        model.train()
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        if "attention_mask" not in inputs:
            raise ValueError("the batch has no attention_mask: packed and padding-free collators are not supported")
        batch = Batch.from_labels(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["labels"],
            sample_ids=inputs.get("sample_ids"),
            beta=inputs.get("beta", self.beta),
            step=self.state.global_step,  # type: ignore[attr-defined]
        )
        batch = replace(batch, denominator=self._denominator(batch, num_items_in_batch))
        self._lm.wrapped = model
        self._stats.merge(self.method.backward(self._lm, batch))
        return self._lm.taken_loss()

    def _denominator(self, batch: Batch, num_items: Any) -> float:
        """What the summed loss of this micro-batch is divided by, as the trainer would do it."""
        accelerator: Accelerator = self.accelerator  # type: ignore[attr-defined]
        if num_items is None:
            return batch.mean_over * float(self.current_gradient_accumulation_steps)  # type: ignore[attr-defined]
        averaged = self.args.average_tokens_across_devices  # type: ignore[attr-defined]
        return float(num_items) / (accelerator.num_processes if averaged else 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's log, with the means of the method's statistics over the steps that its `loss` is of."""
        if "loss" in logs:
            for name, (total, weight) in self._stats.items():
                logs[name] = (total / weight.clamp_min(1e-30)).item()
            self._stats = StepStats()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class _AcceleratedLM(PerturbableLM):
    """Training passes through the trainer's wrapped model, backwards through its accelerator."""

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        super().__init__(accelerator.unwrap_model(model))
        self.accelerator = accelerator
        self.wrapped: nn.Module = model
        self._taken: Tensor | None = None

    def taken_loss(self) -> Tensor:
        """The sum of what was backpropagated since the last call."""
        taken, self._taken = self._taken, None
        return torch.zeros(()) if taken is None else taken

    def _trained_through(self) -> Any:
        return self.wrapped

    def _backpropagate(self, loss: Tensor, last: bool) -> None:
        self.accelerator.backward(loss)
        self._taken = loss.detach() if self._taken is None else self._taken + loss.detach()
