"""What is switched off for an attack's pass: dropout, and activation checkpointing where it is not wanted there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Attribute -> rate above 0 of what a module itself drops: `p` of a dropout, and what modules of transformers keep
    for a functional one or to leave out whole layers (`attention_dropout`, `dropout`, `layerdrop`, ...)."""
    if isinstance(module, _DropoutNd):
        return {"p": module.p} if module.p > 0 else {}
    return _rates_in(module)


def _rates_in(of: object) -> dict[str, float]:
    numbers = {name: value for name, value in vars(of).items() if isinstance(value, float)}
    return {name: rate for name, rate in numbers.items() if "drop" in name and rate > 0}


class DropoutSwitch:
    """Every dropout of a model, looked up once: walking the modules takes 30 to 80 ms for each attack."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._dropping: list[Any] = [m for m in model.modules() if dropout_rates(m)]
        configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")}
        self._configs = [config for config in configs.values() if _rates_in(config)]  # which Falcon's layers read

    @property
    def matters(self) -> bool:
        """Whether a forward pass has any dropout now."""
        dropping = any(module.training and dropout_rates(module) for module in self._dropping)
        return dropping or (self._model.training and any(map(_rates_in, self._configs)))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Dropout off inside, everything else as it is: `model.eval()` would switch checkpointing off as well.

        Rates are 0 inside: some attentions read that of their dropout module and look at their own `training`.
        """
        rates = [(module, dropout_rates(module)) for module in self._dropping]
        rates += [(config, _rates_in(config)) for config in self._configs]
        try:
            for of, own in rates:
                for name in own:
                    setattr(of, name, 0.0)
            yield
        finally:
            for of, own in rates:
                for name, rate in own.items():
                    setattr(of, name, rate)


def recomputes_reentrantly(model: nn.Module) -> bool:
    """Whether activation checkpointing is on in its older form, which computes without a graph the first time."""
    on = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    called = [getattr(getattr(m, "_gradient_checkpointing_func", None), "keywords", {}) for m in on]
    return any(keywords.get("use_reentrant") for keywords in called)


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
