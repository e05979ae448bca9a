"""What benchmarks/kernel.py trusts before it times anything on a GPU: its gate, and the step written by hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

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


class Clock:
    """torch.cuda as far as the benchmark uses it: a captured graph replays its calls, and each takes a millisecond."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.capturing, self.captured = 0, False, []
        for name in ("Stream", "current_stream", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))

    def wait_stream(self, stream: Clock) -> None:
        assert stream is self

    @contextmanager
    def graph(self, graph: Clock) -> Iterator[None]:
        self.capturing, self.captured = True, []
        yield
        self.capturing = False

    def call(self, name: object) -> None:
        if self.capturing:
            self.captured.append(name)

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of which is one on this clock, with whatever it calls itself."""

        def call(*args: Any, **kwargs: Any) -> Any:
            captured = len(self.captured)
            result = function(*args, **kwargs)
            if self.capturing:
                self.captured[captured:] = [function.__name__]
            return result

        return call

    def replay(self) -> None:
        assert self.captured
        self.now += len(self.captured)


class Event:
    """A moment on a Clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.at = clock, -1

    def record(self) -> None:
        self.at = self.clock.now

    def synchronize(self) -> None:
        assert self.at >= 0

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_what_is_timed_is_a_replay_divided_by_its_calls(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert benchmark.graph_ms([partial(clock.call, i) for i in range(7)], repeats=3) == 1.0
    assert clock.captured == list(range(7))


def test_the_gpu_run_rehearsed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the GPU: gate, every contender warmed up, captured and timed, on its own inputs."""
    clock = Clock(monkeypatch)
    for where, name in ((Tensor, "clone"), (benchmark, "nrm_init"), (benchmark, "nrm_step"), (benchmark, "eager_step")):
        monkeypatch.setattr(where, name, clock.counting(getattr(where, name)))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(benchmark, "GPU_SHAPES", [(2, 16, 64)])
    monkeypatch.setattr(benchmark, "ROTATED_BYTES", 3 * 2 * 2 * 16 * 64 * 4)
    rows = benchmark.on_gpu(torch.float32, "cpu")
    assert [row["what"] for row in rows] == ["copy", "nrm_init", "nrm_step", "eager step", "compiled step"]
    assert {row["ms"] for row in rows} == {1.0}
    assert [row["of_copy"] for row in rows] == [1, 1, 2, 2, 2]
