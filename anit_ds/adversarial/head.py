"""`AnswerHead`: the language-model head on the positions that carry a loss only, with float32 logits.

A prompt of 200 tokens with an answer of 3 spends most of its logits on tokens nobody asks about: for a vocabulary of
49k the full head costs a quarter of SmolLM2's step. The head's `forward` is replaced, so whatever the model does with
its logits afterwards (Gemma's soft cap) still happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anit_ds.adversarial.causal import base_of


class AnswerHead:
    """Inside `with head.only_at(rows, positions)` the model's logits are [A, V] float32; outside, the usual [B, T,
    V]."""

    def __init__(self, model: nn.Module) -> None:
        self.module: nn.Module = base_of(model).get_output_embeddings()
        self._original = self.module.forward
        self._where: tuple[Tensor, Tensor] | None = None
        self._off, self._learns = False, True
        self.module.forward = self._forward

    def remove(self) -> None:
        """Give the module its own forward back."""
        self.module.forward = self._original

    @contextmanager
    def only_at(self, rows: Tensor, positions: Tensor) -> Iterator[None]:
        """Compute logits at (rows[i], positions[i]) only; both [A] int64."""
        self._where = (rows, positions)
        try:
            yield
        finally:
            self._where = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the head computes nothing and the model's logits are empty."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

    @contextmanager
    def not_learning(self) -> Iterator[None]:
        """Forward AND backward inside make no gradient of the head's weight: autograd would not ask for it in an
        attack, and it is the largest tensor of all."""
        self._learns = False
        try:
            yield
        finally:
            self._learns = True

    def _forward(self, hidden: Tensor) -> Tensor:
        if self._off:
            return hidden[:, :0]
        if self._where is None:
            return self._original(hidden)
        # Indexing copies the rows together: a strided slice here is 100 times slower on CPU in bfloat16.
        hidden = hidden[self._where]
        if type(self.module) is nn.Linear:
            return _Float32Logits.apply(hidden, self.module.weight, self.module.bias, self._learns)
        return self._original(hidden).float()


class _Float32Logits(torch.autograd.Function):
    """hidden [A, H] -> float32 logits [A, V] for a weight in half precision, without a float32 copy of it.

    Half-precision logits near 20 are 1/8 apart, which is the size of the differences the attack lives on. A CUDA
    device multiplies halves exactly and sums them in float32 by itself. Elsewhere a slice of the weight at a time is
    converted: a float32 copy of all of it would be 2 GB for Llama 3 8B, and takes time: with SmolLM2's weight on a CPU
    the logits of 24 answer tokens need 68 ms with it and 18 ms in slices, those of 300 tokens 238 and 193.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, learns: bool) -> Tensor:
        ctx.learns = learns and ctx.needs_input_grad[1]
        # A weight that does not learn has no use for what it was multiplied by.
        ctx.save_for_backward(weight, hidden if ctx.learns else None)
        ctx.dtype = hidden.dtype
        if _sums_in_float32(hidden, weight):
            logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            logits = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=torch.float32)
            exact, rows = hidden.float(), _rows_of_a_slice(weight)
            for into, part in zip(logits.split(rows, dim=1), weight.split(rows), strict=True):
                torch.mm(exact, part.float().t(), out=into)
        return logits if bias is None else logits.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        weight, hidden = ctx.saved_tensors
        of_weight = _gradient_of_weight(grads[0], hidden, weight) if ctx.learns else None
        of_bias = grads[0].sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        # In bfloat16 only: float16 would lose a gradient below 6e-8, as most of a softmax's are.
        if _sums_in_float32(grads[0], weight) and ctx.dtype is torch.bfloat16:
            of_hidden = torch.mm(grads[0].to(ctx.dtype), weight, out_dtype=torch.float32).to(ctx.dtype)
            return of_hidden, of_weight, of_bias, None
        gradient = grads[0].new_zeros(grads[0].shape[0], weight.shape[1])
        rows = _rows_of_a_slice(weight)
        for back, part in zip(grads[0].split(rows, dim=1), weight.split(rows), strict=True):
            gradient.addmm_(back, part.float())
        return gradient.to(ctx.dtype), of_weight, of_bias, None


def _gradient_of_weight(grad: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """[V, H] from grad [A, V] and hidden [A, H], summed in float32."""
    gradient, exact = torch.empty_like(weight), hidden.float()
    rows = _rows_of_a_slice(weight)
    for into, back in zip(gradient.split(rows), grad.split(rows, dim=1), strict=True):
        into.copy_(back.t() @ exact)
    return gradient


def _sums_in_float32(tensor: Tensor, weight: Tensor) -> bool:
    """Whether torch.mm takes halves and gives float32 here: only CUDA devices have it."""
    return tensor.is_cuda and torch.version.hip is None and weight.dtype in (torch.bfloat16, torch.float16)


def _rows_of_a_slice(weight: Tensor) -> int:
    """8 MB in float32 for a CPU's cache, 128 MB where every launch counts; all, if there is nothing to convert."""
    if weight.dtype is torch.float32:
        return weight.shape[0]
    elements = 2**21 if weight.device.type == "cpu" else 2**25
    return max(1, elements // weight.shape[1])
