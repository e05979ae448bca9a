"""What only a GPU can show of the kernels: other streams, a captured graph, memory that does not begin at 16 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import anit_kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device("cpu")


def run(grad: Tensor, e: Tensor, samples: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    x0 = anit_kernels.nrm_init(e, **samples)
    x1, stats = anit_kernels.nrm_step(grad, e, **samples, alpha=0.7, ball="frobenius")
    return x0, x1, stats.delta1_norm


def batch(width: int = 64) -> tuple[Tensor, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    attended = torch.arange(40) < torch.tensor([40, 17, 3])[:, None]
    samples = {
        "mask": attended, "attended": attended, "seed": 1, "step": 2, "sample_ids": torch.arange(3), "eps": 1.0,
        "beta": torch.full((3,), 0.3),
    }  # fmt: skip
    grad, e = torch.randn(3, 40, width), torch.randn(3, 40, width)
    return grad.bfloat16(), e.bfloat16(), samples


def test_another_stream_gives_the_same() -> None:
    grad, e, samples = batch()
    expected = run(grad, e, samples)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run(grad, e, samples)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected))


def test_a_captured_graph_gives_the_same_and_follows_its_inputs() -> None:
    grad, e, samples = batch()
    run(grad, e, samples)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(grad, e, samples)
    for factor in (1.0, -2.0):
        grad.mul_(factor)
        graph.replay()
        assert all(map(torch.equal, found, run(grad, e, samples)))


@pytest.mark.parametrize("width", [64, 641])
def test_memory_that_begins_anywhere(width: int) -> None:
    grad, e, samples = batch(width)
    expected = run(grad, e, samples)

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    assert shifted(e).data_ptr() % 16 != 0
    assert all(map(torch.equal, run(shifted(grad), shifted(e), samples), expected))
