"""LoRA layers that learn from the first tokens of a pass only: the rest feel the weights and leave no gradient in them.

This is what lets attack rows share a forward and a backward with training rows: the frozen weights' products are
computed over all of them at once, the attack's gradient goes back to its embeddings, and lora_A, lora_B and LoRA's
dropout see the training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anit_ds.adversarial.dropout import dropout_rates
from anit_ds.errors import InputError

_INSTEAD = "use method.schedule=three_pass"


class PartlyTrainedLora:
    """Changes the forward of a PEFT model's lora_A, lora_B and lora_dropout; `remove()` undoes it.

    Raises InputError where something else than LoRA on linear layers is trained, or where a dropout of the base model
    would reach the attack rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self._split: tuple[int, int] | None = None
        self._originals: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        linears, dropouts = _lora_parts(model)
        _refuse_what_would_mix(model, linears, dropouts)
        for linear in linears:
            self._replace(linear, self._linear)
        for dropout in dropouts:
            self._replace(dropout, self._dropout)

    def _replace(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        original = module.forward
        self._originals.append((module, original))
        module.forward = partial(forward, module, original)

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for module, original in self._originals:
            module.forward = original

    @contextmanager
    def learning_from(self, tokens: int, *, of: int) -> Iterator[None]:
        """Forward AND backward inside learn from the first `tokens` of the pass's `of` tokens, counted row by row."""
        self._split = (tokens, of)
        try:
            yield
        finally:
            self._split = None

    def _linear(self, module: nn.Linear, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        if self._split is None:
            return original(x)
        out: Tensor = _LearnsFromFirst.apply(x, module.weight, self._trained_tokens(x))
        return out

    def _dropout(self, module: nn.Dropout, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        if self._split is None or not module.training:
            return original(x)
        trained = self._trained_tokens(x)
        tokens = x.flatten(0, -2)
        return torch.cat([F.dropout(tokens[:trained], module.p), tokens[trained:]]).view_as(x)

    def _trained_tokens(self, x: Tensor) -> int:
        assert self._split is not None
        trained, total = self._split
        if x.shape[:-1].numel() != total:
            raise InputError(
                f"method.schedule: pipelined needs every LoRA layer to see all {total} tokens of a pass, and one sees "
                f"{x.shape[:-1].numel()}; {_INSTEAD}"
            )
        return trained


class _LearnsFromFirst(torch.autograd.Function):
    """x [..., I], weight [O, I] -> x weight^T [..., O], where only the first n tokens reach the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.n = n
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = grad.flatten(0, -2)[: ctx.n].T @ x.flatten(0, -2)[: ctx.n]
        return grad_x, grad_weight, None


def _lora_parts(model: nn.Module) -> tuple[list[nn.Linear], list[nn.Dropout]]:
    """Every lora_A and lora_B that is a linear layer of a linear layer, and LoRA's dropouts (none where p is 0)."""
    from peft.tuners import lora  # here and below: only a LoRA model needs PEFT

    # The layer on weights in 4 bits is there where bitsandbytes is.
    known = lora.Linear, getattr(lora, "Linear4bit", lora.Linear)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, known)]
    linears = [m for layer in layers for part in (layer.lora_A, layer.lora_B) for m in part.values()]
    dropouts = [m for layer in layers for m in layer.lora_dropout.values() if isinstance(m, nn.Dropout)]
    return linears, dropouts


def _refuse_what_would_mix(model: Any, linears: list[nn.Linear], dropouts: list[nn.Dropout]) -> None:
    from peft.tuners.lora import LoraLayer

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    in_head = {id(m) for m in head.modules()} if head is not None else set()
    learned = {id(linear.weight) for linear in linears if id(linear) not in in_head}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in learned:
            raise InputError(
                "method.schedule: pipelined trains lora_A and lora_B of linear layers below the head and nothing else, "
                f"and this run trains {name}; {_INSTEAD}"
            )
    ours = {id(dropout) for dropout in dropouts}
    for name, module in model.named_modules():
        rates = {} if id(module) in ours else dropout_rates(module)
        if p := max(rates.values(), default=0.0):
            raise InputError(
                f"method.schedule: pipelined cannot keep the base model's dropout of {p} in {name} off the attack's "
                f"rows; {_INSTEAD}"
            )
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    if any(layer.lora_variant for layer in layers):
        raise InputError(f"method.schedule: pipelined knows plain LoRA, no variant such as DoRA; {_INSTEAD}")
