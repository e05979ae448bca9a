"""Where the kernels' tests make their tensors: the interpreter's CPU, or the GPU that ANIT_KERNEL_DEVICE names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = os.environ.get("ANIT_KERNEL_DEVICE", "cpu")


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
