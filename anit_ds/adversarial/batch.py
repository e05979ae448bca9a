"""`Batch`: what a forward pass and an attack need to know about some tokenised samples.

Two forms, one meaning. Padded: a row a sample, [B, T]. Packed: the samples end to end in one row, [1, total], without a
token of padding. Code that works per sample asks `sum_per_sample` and `to_tokens` and need not know which form it has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a token that carries no loss, as everywhere in PyTorch


@dataclass(frozen=True)
class Batch:
    """S samples, padded on either side (B = S rows of T tokens) or packed (B = 1 row of T = sum of `lengths` tokens).

    The answer is stored as the A positions whose hidden state predicts an answer token, so that the language-model head
    runs on these only and nothing in a step has to search for them (a search would wait for the device).
    """

    input_ids: Tensor  # [B, T] int64
    attended: Tensor  # [B, T] bool: a real token, not padding
    scope: Tensor  # [B, T] bool: the perturbation may touch this token
    sample_ids: Tensor  # [S] int64: the bits of the sample's 64-bit key, the counter of its random numbers
    beta: Tensor  # [S] float32: semantic distortion that scales the start of the attack (docs/method.md section 3)
    target_rows: Tensor  # [A] int64: sample of each predicting position (its row, where the batch is padded)
    target_positions: Tensor  # [A] int64: its place in its row, one before the token it predicts
    target_ids: Tensor  # [A] int64: the token to predict
    step: int = 0  # the optimizer step this batch belongs to: part of the random numbers' counter
    denominator: float | None = None  # what the summed loss is divided by; None: the answer tokens of this batch
    right_padded: bool = False  # known to have padding behind the tokens only, where causal attention never looks
    # Packed only. On the host too, so that attention can be cut at the samples without waiting for the device.
    lengths: tuple[int, ...] | None = None  # tokens of each sample
    cu_seqlens: Tensor | None = None  # [S + 1] int32: the same as running sums from 0

    @classmethod
    def from_labels(
        cls,
        input_ids: Tensor,
        attended: Tensor | None,
        labels: Tensor,
        *,
        scope: Tensor | None = None,
        sample_ids: Tensor | None = None,
        beta: Tensor | float = 0.0,
        step: int = 0,
        denominator: float | None = None,
    ) -> Batch:
        """A padded batch from the usual three tensors [B, T]: ids, attention mask, labels with -100 where no loss is.

        A label counts where its token and the one before it are attended: a sample's first has nothing to be predicted
        from. `scope` defaults to the prompt, that is every attended token without a label; `sample_ids` to 0 .. B-1
        (give real ones where the random start must not depend on a sample's place in the batch). Without `attended` no
        token is padding. Raises ValueError for shapes that are not one, and for a beta that is no share.
        """
        size, device = input_ids.shape[0], input_ids.device
        attended = torch.ones_like(input_ids) if attended is None else attended
        for name, given in {"attended": attended, "labels": labels, "scope": scope}.items():
            if given is not None and given.shape != input_ids.shape:
                raise ValueError(f"{name}: [{size}, T] as input_ids {list(input_ids.shape)}, not {list(given.shape)}")
        if not isinstance(beta, Tensor) and not 0 <= beta <= 1:
            raise ValueError(f"beta: a distortion from 0 to 1, not {beta}")
        attended = attended.bool()
        predicted = (labels[:, 1:] != IGNORE) & attended[:, 1:] & attended[:, :-1]
        rows, positions = predicted.nonzero(as_tuple=True)
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

    def packed(self) -> Batch:
        """The same samples end to end in one row, padding left out; waits for the device where the batch is on one."""
        if self.lengths is not None:
            return self
        lengths = self.attended.sum(1)
        sizes = tuple(lengths.tolist())
        if 0 in sizes:
            raise ValueError("a sample without an attended token cannot be packed; leave it out of the batch")
        place = (self.attended.flatten().cumsum(0) - 1).view_as(self.attended)
        return replace(
            self,
            input_ids=self.input_ids[self.attended][None],
            attended=self.attended[self.attended][None],
            scope=self.scope[self.attended][None],
            target_positions=place[self.target_rows, self.target_positions],
            lengths=sizes,
            cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).int(),
        )

    @property
    def size(self) -> int:
        """S, the number of samples."""
        return len(self.sample_ids)

    @property
    def mean_over(self) -> float:
        """Divisor of the summed loss: the answer tokens of the global batch (docs/method.md section 4)."""
        return float(len(self.target_ids)) if self.denominator is None else self.denominator

    @property
    def attacked(self) -> Tensor:
        """[S] bool: the sample has a token in scope."""
        return self.sum_per_sample(self.scope.float()) > 0

    @property
    def target_tensor_rows(self) -> Tensor:
        """[A] int64: dimension 0 of each predicting position in a tensor [B, T, ...]."""
        return self.target_rows if self.lengths is None else torch.zeros_like(self.target_rows)

    def position_ids(self) -> Tensor:
        """[B, T] rank of each token among its sample's real ones, so that padding moves no rotary angle."""
        if self.cu_seqlens is None:
            return (self.attended.long().cumsum(1) - 1).clamp_(min=0)
        places = torch.arange(self.input_ids.shape[1], device=self.cu_seqlens.device)
        return (places - self.cu_seqlens[self._sample_of_token()])[None]

    def sum_per_sample(self, values: Tensor) -> Tensor:
        """[S]: the sum over each sample's tokens, and over channels where there are any, of values [B, T] or [B, T,
        D]."""
        if self.lengths is None:
            return values.flatten(1).sum(1)
        per_token = values[0] if values.dim() == 2 else values[0].sum(-1)
        return per_token.new_zeros(self.size).index_add(0, self._sample_of_token(), per_token)

    def norm_per_sample(self, values: Tensor) -> Tensor:
        """[S]: the Frobenius norm of each sample's part of values [B, T, D]; inf or NaN where its square sum is."""
        return self.sum_per_sample(values.square()).sqrt()

    def to_tokens(self, of_samples: Tensor) -> Tensor:
        """One value a sample [S] as [B, 1, 1] or [1, total, 1], to be multiplied with values [B, T, D]."""
        if self.lengths is None:
            return of_samples[:, None, None]
        return of_samples[self._sample_of_token()][None, :, None]

    def _sample_of_token(self) -> Tensor:
        assert self.cu_seqlens is not None, "only a packed batch lists its tokens' samples"
        samples = torch.arange(self.size, device=self.cu_seqlens.device)
        return samples.repeat_interleave(self.cu_seqlens.diff(), output_size=self.input_ids.shape[1])

    def to(self, device: torch.device | str) -> Batch:
        tensors: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)
