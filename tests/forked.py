"""Programs for tests, quickly: a fork server imports the trainer once, and every program is a fork of it.

What a new interpreter does with its first second, or with its last, is not seen here: a fork ends without a teardown.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["anit_ds.training"])


class Program:
    """`python FILE ARGUMENTS`, or `anit ARGUMENTS` with the file "anit", as far as `subprocess.Popen` would have it.

    `output` gets what it says on stdout and stderr.
    """

    def __init__(
        self,
        file: Path | str,
        *arguments: object,
        output: Path,
        cwd: Path | None = None,
        **environment: str,
    ) -> None:
        self.output = output
        argv = [str(file), *map(str, arguments)]
        self._process = CONTEXT.Process(target=_run, args=(argv, environment, output, cwd))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """The exit code; minus its number for a signal. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.output), timeout)
        return self._process.exitcode

    def said(self) -> str:
        return self.output.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(argv: list[str], environment: dict[str, str], output: Path, cwd: Path | None) -> None:
    os.environ.update(environment)
    with output.open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = argv
    try:
        if argv[0] == "anit":
            from anit_ds.commands.cli import main

            main()
        else:
            sys.path.insert(0, str(Path(argv[0]).parent))
            runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
