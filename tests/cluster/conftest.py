"""Fixtures of the cluster tests: the daemons, launches that are cleaned up after, and runs of the tiny model."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file

from daemons import install  # noqa: E402
from namespaces import Namespaces  # noqa: E402
from runs import REPOSITORY, Launches, TinyRun, make_run, write_sentences  # noqa: E402
from slurm import Slurm  # noqa: E402
from sshd import Sshd  # noqa: E402

# A shell's background job ignores Ctrl-C and hands that on; bash cannot trap again what it was started to ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def launches() -> Iterator[Launches]:
    """Ends what a failed test leaves running."""
    launched = Launches()
    yield launched
    for pid in launched.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_folder: Path, sentences: Path) -> Callable[..., TinyRun]:
    """Makes runs of the tiny model, dropout off so that any number of ranks gives the same result."""
    return lambda name="run", **train: make_run(tmp_path, name, tiny_folder, sentences, **train)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in SST-2's format, of sentences made up here."""
    return write_sentences(tmp_path_factory.mktemp("sst2"))


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, sentences: Path) -> Callable[..., TinyRun]:
    """The same training in one process without a launcher; each distinct one is run once."""
    done: dict[tuple[tuple[str, Any], ...], TinyRun] = {}

    def train(**settings: Any) -> TinyRun:
        key = tuple(sorted(settings.items()))
        if key not in done:
            run = make_run(tmp_path_factory.mktemp("one-process"), "run", tiny_folder, sentences, **settings)
            code, output = Launches().run(REPOSITORY / ".venv/bin/anit", "train", run.config)
            assert code == 0, output
            done[key] = run
        return done[key]

    return train


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """Two addresses of this machine that answer as ssh hosts."""
    install({"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"})
    with Sshd(tmp_path / "ssh") as daemon:
        yield daemon


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A SLURM cluster of two nodes on this machine."""
    install({"slurmctld": "slurm-wlm", "srun": "slurm-wlm", "munged": "munge"})
    with Slurm(tmp_path / "slurm") as cluster:
        yield cluster


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Two network namespaces joined by a cable: hosts with their own addresses and nothing else."""
    install({"ip": "iproute2"})
    with Namespaces() as hosts:
        yield hosts


@pytest.fixture(autouse=True)
def anit_is_installed() -> None:
    if not (REPOSITORY / ".venv/bin/anit").exists() and shutil.which("anit") is None:
        pytest.skip("the command `anit` is not installed")
