"""Any of the methods inside the Hugging Face `Trainer`, and so TRL's `SFTTrainer`: a mix-in before the trainer's class.

    class NRMTrainer(AdversarialTrainerMixin, SFTTrainer):
        pass

    trainer = NRMTrainer(model=model, args=args, train_dataset=dataset)
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
from anit_ds.adversarial.perturb import PerturbableLM, embedding_scale
from anit_ds.adversarial.stats import StepStats

if TYPE_CHECKING:
    from accelerate import Accelerator

_KNOWN = ("NO", "MULTI_CPU", "MULTI_GPU")


class AdversarialTrainerMixin:
    """method: an object with `backward(lm, batch)`; by default NRM with signs of 0.3% of an element, which did best of
    what was tried on the whole prompt (docs/results.md). beta: semantic distortion of every sample in [0, 1].

    A batch may hold `beta` and `sample_ids` [B] of its own (without the latter, delta0's random numbers follow from a
    sample's place in its batch). Attacked is the prompt: every attended token whose label is -100.
    Raises ValueError for a trainer under DeepSpeed or FSDP (`anit train` is for these), for packed batches, and for
    a method that steps on each minibatch several times (`freeat`, `updates: alternating`).
    """

    def __init__(self, *args: Any, method: Any = None, beta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerator: Accelerator = self.accelerator  # type: ignore[attr-defined]
        self._refuse_what_is_not_done(accelerator)
        self.method, self.beta = method or _small_signs(self.model), beta  # type: ignore[attr-defined]
        if (replays := getattr(self.method, "replays", 1)) > 1:
            raise ValueError(
                f"{type(self.method).__name__} steps {replays} times on each minibatch, and this trainer "
                "takes a new one each time"
            )
        self._lm = _AcceleratedLM(self.model, accelerator)  # type: ignore[attr-defined]
        self._stats, self._looked = StepStats(), False

    def _refuse_what_is_not_done(self, accelerator: Accelerator) -> None:
        """What the trainer would do to the loss or to the model, and this step does not."""
        args: Any = self.args  # type: ignore[attr-defined]
        if accelerator.distributed_type.value not in _KNOWN:
            why = f"knows one process and DDP, not {accelerator.distributed_type.value}; for ZeRO use anit train"
        elif args.n_gpu > 1:
            why = "does not run under DataParallel; start it with torchrun, or show it one GPU (CUDA_VISIBLE_DEVICES=0)"
        elif args.label_smoothing_factor:
            why = "trains on the plain loss of the answers, without label_smoothing_factor"
        elif getattr(args, "loss_type", "nll") != "nll":
            why = f"trains on the plain loss of the answers, not on loss_type={args.loss_type}"
        elif getattr(self, "compute_loss_func", None) is not None:
            why = "trains on the plain loss of the answers, not on compute_loss_func"
        else:
            return
        raise ValueError(f"{type(self).__name__} {why}")

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch of the method, backpropagated. Returns its summed loss over the answer tokens of the step."""
        model.train()
        optimizer: Any = getattr(self, "optimizer", None)
        if callable(getattr(optimizer, "train", None)):  # an evaluation has put a schedule-free one into its other mode
            optimizer.train()
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
        if not self._looked and len(batch.target_ids) and not batch.scope.any():
            raise ValueError(
                f"{type(self).__name__}: every token of the first batch is trained on, so no prompt is left to "
                "perturb; set completion_only_loss or assistant_only_loss"
            )
        self._looked = True
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


def _small_signs(model: Any) -> NRM:
    alpha = 0.003 * embedding_scale(model, "element")
    return NRM(alpha=alpha, step="sign", start=0.0, ball="none", gradient="clean")


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
