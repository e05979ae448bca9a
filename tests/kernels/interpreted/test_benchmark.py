"""What benchmarks/kernel.py trusts before it times anything on a GPU: its gate, and the step written by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anit_kernels import nrm_init, nrm_step, nrm_triton


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("ANIT_KERNEL", "triton")
    path = Path(__file__).parents[3] / "benchmarks" / "kernel.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("benchmark_kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gate_lets_a_right_kernel_pass(benchmark: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    benchmark.gate(*benchmark.inputs((2, 16, 64), dtype, "cpu"))


@pytest.mark.parametrize("spoilt", ["nrm_init", "nrm_step"])
def test_the_gate_stops_a_wrong_kernel(benchmark: ModuleType, spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    right = getattr(nrm_triton, spoilt)

    def wrong(*arguments: object) -> object:
        result = right(*arguments)
        x = result[0] if isinstance(result, tuple) else result
        x[1, 3, 5] += 0.05
        return result

    monkeypatch.setattr(nrm_triton, spoilt, wrong)
    with pytest.raises(SystemExit, match="the gate is red"):
        benchmark.gate(*benchmark.inputs((2, 16, 64), torch.bfloat16, "cpu"))


def test_the_step_by_hand_is_the_same_step(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    grad, e, samples = benchmark.inputs((2, 16, 64), torch.float32, "cpu")
    delta0 = nrm_init(torch.zeros_like(e), **samples)
    by_hand = benchmark.eager_step(grad, e, delta0, samples["mask"][..., None], samples["eps"])
    x1, _ = nrm_step(grad, e, **samples, alpha=benchmark.ALPHA, ball=benchmark.BALL)
    torch.testing.assert_close(x1, by_hand)
