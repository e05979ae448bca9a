"""`Batch`: what a forward pass and an attack need to know about some tokenised samples, padded to one length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the label of a token that carries no loss, as everywhere in PyTorch


@dataclass(frozen=True)
class Batch:
    """B samples padded to T tokens, on either side.

    The answer is stored as the A positions whose hidden state predicts an answer token, so that the language-model head
    runs on these only and nothing in a step has to search for them (a search would wait for the device).
    """

    input_ids: Tensor  # [B, T] int64
    attended: Tensor  # [B, T] bool: a real token, not padding
    scope: Tensor  # [B, T] bool: the perturbation may touch this token
    sample_ids: Tensor  # [B] int64: the bits of the sample's 64-bit key, the counter of its random numbers
    beta: Tensor  # [B] float32: semantic distortion that scales the start of the attack (method.md section 3)
    target_rows: Tensor  # [A] int64: row of each predicting position
    target_positions: Tensor  # [A] int64: its position, one before the token it predicts
    target_ids: Tensor  # [A] int64: the token to predict
    step: int = 0  # the optimizer step this batch belongs to: part of the random numbers' counter
    denominator: float | None = None  # what the summed loss is divided by; None: the answer tokens of this batch

    @classmethod
    def from_labels(
        cls,
        input_ids: Tensor,
        attended: Tensor,
        labels: Tensor,
        *,
        scope: Tensor | None = None,
        sample_ids: Tensor | None = None,
        beta: Tensor | float = 0.0,
        step: int = 0,
        denominator: float | None = None,
    ) -> Batch:
        """A batch from the usual three tensors [B, T]: ids, attention mask, labels with -100 where no loss is.

        `scope` defaults to the prompt, that is every attended token without a label; `sample_ids` to 0 .. B-1 (give
        real ones where the random start must not depend on a sample's place in the batch).
        """
        rows, positions = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        size, device = input_ids.shape[0], input_ids.device
        attended = attended.bool()
        return cls(
            input_ids=input_ids,
            attended=attended,
            scope=(attended & (labels == IGNORE)) if scope is None else scope,
            sample_ids=torch.arange(size, device=device) if sample_ids is None else sample_ids,
            beta=torch.as_tensor(beta, dtype=torch.float32, device=device).expand(size),
            target_rows=rows,
            target_positions=positions,
            target_ids=labels[rows, positions + 1],
            step=step,
            denominator=denominator,
        )

    @property
    def size(self) -> int:
        return self.input_ids.shape[0]

    @property
    def mean_over(self) -> float:
        """Divisor of the summed loss: the answer tokens of the global batch (method.md section 4)."""
        return float(len(self.target_ids)) if self.denominator is None else self.denominator

    def position_ids(self) -> Tensor:
        """[B, T] rank of each token among its sample's real ones, so that padding moves no rotary angle."""
        return (self.attended.long().cumsum(1) - 1).clamp_(min=0)

    def to(self, device: torch.device | str) -> Batch:
        tensors: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)
