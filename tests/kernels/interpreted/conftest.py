"""Where the kernels' tests make their tensors: the interpreter's CPU, or the GPU that ANIT_KERNEL_DEVICE names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

DEVICE = os.environ.get("ANIT_KERNEL_DEVICE", "cpu")


def _patch_the_language_once() -> None:
    """Keep triton.language interpreted: the interpreter patches it at every launch and every call of a function in it,
    which takes longer than the kernels do. Here nothing is compiled in between, so once a module is the same."""
    from triton.runtime import interpreter

    patch: Callable[[Any], object] = interpreter._patch_lang
    patched: set[int] = set()

    def once(fn: Any) -> SimpleNamespace:
        if id(fn.__globals__) not in patched:
            patch(fn)
            patched.add(id(fn.__globals__))
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once


if os.environ.get("TRITON_INTERPRET") == "1":
    _patch_the_language_once()


@pytest.fixture(autouse=True)
def on_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.name != "test_training.py":  # the trainer says itself where each tensor is
        torch.set_default_device(DEVICE)
    yield
    torch.set_default_device("cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands in for a GPU is not tested on one."""
    for item in items:
        if item.path.name == "test_benchmark.py" and DEVICE.startswith("cuda"):
            item.add_marker(pytest.mark.skip(reason="replaces torch.cuda by one that needs no GPU"))
