"""What is switched off for an attack's pass: dropout, and activation checkpointing where it is not wanted there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class DropoutSwitch:
    """Every dropout of a model, looked up once: walking the modules takes 30 to 80 ms for each attack.

    Covers nn.Dropout modules (PEFT's among them) and attention's functional dropout, kept by transformers in an
    attribute.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        self._attentions: list[Any] = [m for m in model.modules() if getattr(m, "attention_dropout", 0.0)]

    @property
    def matters(self) -> bool:
        """Whether a forward pass has any dropout now."""
        return any(m.training and m.p > 0 for m in self._modules) or any(m.training for m in self._attentions)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Dropout off inside, everything else as it is: `model.eval()` would switch checkpointing off as well."""
        switched = [m for m in self._modules if m.training]
        rates = [m.attention_dropout for m in self._attentions]
        for dropout in switched:
            dropout.training = False
        for attention in self._attentions:
            attention.attention_dropout = 0.0
        try:
            yield
        finally:
            for dropout in switched:
                dropout.training = True
            for attention, rate in zip(self._attentions, rates, strict=True):
                attention.attention_dropout = rate


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Activation checkpointing off, everything else as it is."""
    switched: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in switched:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True
