"""Where the kernels' tests make their tensors: the interpreter's CPU, or the GPU that ANIT_KERNEL_DEVICE names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = os.environ.get("ANIT_KERNEL_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device("cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands in for a GPU is not tested on one, and what needs one is not tested without."""
    for item in items:
        if item.get_closest_marker("gpu") and not DEVICE.startswith("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: ANIT_KERNEL_DEVICE=cuda"))
        if item.path.name == "test_benchmark.py" and DEVICE.startswith("cuda"):
            item.add_marker(pytest.mark.skip(reason="replaces torch.cuda by one that needs no GPU"))
