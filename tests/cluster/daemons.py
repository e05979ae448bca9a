"""Installing and starting the daemons that the cluster tests need, and stopping every one of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Daemons live where only root's PATH looks.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def install(programs: dict[str, str]) -> None:
    """Make each program (name -> Debian package) available; where that is not possible, skip the test and say why."""
    if os.geteuid() != 0:
        pytest.skip("the cluster tests start daemons and need root")
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"{', '.join(missing)} not installed, and there is no apt-get")
    get = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*get, "update"], capture_output=True, check=False)
    installed = subprocess.run(
        [*get, "install", "-y", "--no-install-recommends", *missing],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode != 0:
        pytest.skip(f"apt-get cannot install {', '.join(missing)}: {installed.stderr.strip()[-200:]}")


class Daemons:
    """Processes in the foreground of their own sessions, each with a log; leaving the `with` ends all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: object, **environment: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    [str(word) for word in command],
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            )

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float = 20) -> None:
        until = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > until:
                logs = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in self.folder.glob("*.log"))
                raise TimeoutError(f"{what} not ready after {timeout:g} s\n{logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        for which in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self._running):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, which)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        self._running.clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
