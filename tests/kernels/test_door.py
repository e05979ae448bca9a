"""The one door to both implementations: what it chooses, says and refuses, and an install without Triton."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch

import anit_kernels

E = torch.zeros(2, 3, 8)
SAMPLES: dict[str, Any] = {
    "mask": torch.ones(2, 3, dtype=torch.bool),
    "attended": torch.ones(2, 3, dtype=torch.bool),
    "seed": 1,
    "step": 2,
    "sample_ids": torch.arange(2),
    "eps": 1.0,
    "beta": torch.zeros(2),
}


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANIT_KERNEL", raising=False)
    anit_kernels._load.cache_clear()


def test_the_reference_runs_on_a_cpu_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anit_kernels"):
        anit_kernels.nrm_init(E, **SAMPLES)
        anit_kernels.nrm_init(E, **SAMPLES)
    assert len(caplog.messages) == 1
    assert "PyTorch reference" in caplog.messages[0]


def test_forcing_the_reference_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIT_KERNEL", "reference")
    with caplog.at_level(logging.INFO, "anit_kernels"):
        anit_kernels.nrm_init(E, **SAMPLES)
    assert caplog.messages == ["NRM runs on the PyTorch reference (ANIT_KERNEL asks for it)"]


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIT_KERNEL", "cuda")
    with pytest.raises(ValueError, match="ANIT_KERNEL is 'cuda'"):
        anit_kernels.nrm_init(E, **SAMPLES)


def test_it_works_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, anit_kernels\n"
        "e, m = torch.zeros(1, 2, 8), torch.ones(1, 2, dtype=torch.bool)\n"
        "x = anit_kernels.nrm_init(e, m, m, 1, 2, torch.arange(1), 1.0, torch.zeros(1))\n"
        "print(bool(x.any()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr


def test_forcing_triton_without_triton_names_the_cure() -> None:
    program = (
        "import sys, os; sys.modules['triton'] = None; os.environ['ANIT_KERNEL'] = 'triton'\n"
        "import torch, anit_kernels\n"
        "m = torch.ones(1, 2, dtype=torch.bool)\n"
        "anit_kernels.nrm_init(torch.zeros(1, 2, 8), m, m, 1, 2, torch.arange(1), 1.0, torch.zeros(1))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert "ANIT_KERNEL is 'triton' but Triton is not installed" in run.stderr


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("embeddings", E.double(), TypeError, "embeddings are torch.float64"),
    ("embeddings", E[0], ValueError, r"must be \[B, T, D\]"),
    ("mask", SAMPLES["mask"].int(), ValueError, "mask is torch.int32"),
    ("attended", SAMPLES["attended"][:, :2], ValueError, r"attended is torch.bool \(2, 2\)"),
    ("sample_ids", torch.arange(3), ValueError, r"must be torch.int64 \(2,\)"),
    ("beta", torch.zeros(2).double(), ValueError, "beta is torch.float64"),
    ("eps", torch.ones(3), ValueError, r"eps is torch.float32 \(3,\)"),
    ("step", -1, ValueError, "step is -1"),
    ("step", 2**32, ValueError, "step is 4294967296"),
    ("seed", 2**64, ValueError, "must fit 64 bits"),
]


@pytest.mark.parametrize(("name", "value", "error", "sentence"), WRONG, ids=[f"{w[0]}-{w[3]}" for w in WRONG])
def test_wrong_arguments_are_named(name: str, value: Any, error: type[Exception], sentence: str) -> None:
    arguments: dict[str, Any] = {"embeddings": E} | SAMPLES | {name: value}
    with pytest.raises(error, match=sentence):
        anit_kernels.nrm_init(**arguments)


def test_wrong_step_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="ball is 'l2'; it must be one of frobenius, linf, none"):
        anit_kernels.nrm_step(E, E, **SAMPLES, alpha=1.0, ball="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grad is"):
        anit_kernels.nrm_step(E[:1], E, **SAMPLES, alpha=1.0, ball="none")
