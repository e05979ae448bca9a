"""Ctrl-C on a real terminal: once saves and ends with 0, twice ends what does not answer; nothing is left behind.

srun has a Ctrl-C of its own.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import LAUNCH, REPOSITORY, Launches, TinyRun
from slurm import Slurm
from sshd import Sshd


class Terminal:
    """A command that owns a pseudo-terminal, as a shell in the foreground gives it one, and somebody reads it."""

    def __init__(self, launches: Launches, *command: object, **more: str) -> None:
        words = [str(word) for word in command]
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(REPOSITORY)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script in the background ignores it, and so would bash
            os.execvpe(words[0], words, {**launches.environment, **more})
        self._said = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last one who had it open has gone
            while said := os.read(self._master, 65536):
                self._said += said

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def await_word(self, word: str, within: float = 60) -> None:
        until = time.monotonic() + within
        while word not in self._said.decode(errors="replace"):
            assert time.monotonic() < until, f"no {word!r} in {within:g} s"
            time.sleep(0.05)

    def ended(self, within: float) -> tuple[int, str]:
        """(exit code, what it showed); a failure when it takes longer."""
        until = time.monotonic() + within
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        while not pid and time.monotonic() < until:
            time.sleep(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        text = self._said.decode(errors="replace")
        assert pid, f"still there after {within:g} s\n{text}"
        return os.waitstatus_to_exitcode(status), text


def line(way: str, sshd: Sshd | None, run: TinyRun) -> tuple[object, ...]:
    train = ("anit", "train", run.config)
    if way == "local":
        return (LAUNCH / "local.sh", "--ranks", 2, *train)
    if way == "ssh" and sshd:
        return (LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile, *train)
    return (REPOSITORY / ".venv/bin/anit", *train[1:])


@pytest.mark.parametrize("way", ["alone", "local", "ssh"])
def test_once_saves_and_the_same_line_goes_on(
    launches: Launches, sshd: Sshd, tiny_run: Callable[..., TinyRun], way: str
) -> None:
    run = tiny_run(max_steps=2000, checkpoint_every=10000)
    terminal = Terminal(launches, *line(way, sshd, run), **sshd.variables)
    run.await_step(3)
    terminal.press_ctrl_c()
    code, said = terminal.ended(within=120)
    assert code == 0, said
    last = run.steps()[-1]
    assert (run.out / "checkpoints" / f"step-{last:06d}").is_dir() and not run.finished, said
    assert launches.left_over() == {}


RANK = """
import os, signal, time
told = []
for which in (signal.SIGINT, signal.SIGTERM):
    signal.signal(which, lambda number, frame: told.append(number))
print("up", flush=True)
while not told: pass
until = time.monotonic() + 0.3
while time.monotonic() < until: pass
"""


def test_a_press_that_comes_twice_at_once_is_one(launches: Launches, tmp_path: Path) -> None:
    """From the terminal and through the launcher, on a busy machine: one in four was taken for the ranks' exit code."""
    (tmp_path / "rank.py").write_text(RANK)
    ranks = 'supervise "$0/node.sh" --first 0 --ranks 2 --world 2 --master 127.0.0.1:1 --logs "$1" python3 "$1/rank.py"'
    for _ in range(16):
        terminal = Terminal(launches, "bash", "-uc", f'source "$0/common.sh"; {ranks}', LAUNCH, tmp_path)
        terminal.await_word("up")
        time.sleep(0.3)
        terminal.press_ctrl_c()
        code, said = terminal.ended(within=60)
        assert code == 0, said
    assert launches.left_over() == {}


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_twice_ends_what_does_not_answer(
    launches: Launches, sshd: Sshd, tiny_run: Callable[..., TinyRun], way: str
) -> None:
    run = tiny_run(max_steps=2000, checkpoint_every=10000)
    terminal = Terminal(launches, *line(way, sshd, run), **sshd.variables)
    run.await_step(3)
    os.kill(launches.rank(0), signal.SIGSTOP)  # cannot save
    terminal.press_ctrl_c()
    time.sleep(5)
    terminal.press_ctrl_c()
    code, said = terminal.ended(within=30)
    assert code == 1 and "rank 0 ended with code 137 (SIGKILL)" in said, said
    assert launches.left_over() == {}


def test_srun_keeps_ctrl_c_to_itself(launches: Launches, slurm: Slurm, tiny_run: Callable[..., TinyRun]) -> None:
    """Its first says how the tasks are, two within a second kill them; a signal by scancel saves."""
    run = tiny_run(max_steps=2000, checkpoint_every=10000)
    srun = ("srun", "--nodes=2", "--ntasks-per-node=1", *line("alone", None, run))
    terminal = Terminal(launches, *srun, **slurm.variables)
    run.await_step(3)
    terminal.press_ctrl_c()
    run.await_step(run.steps()[-1] + 5)
    slurm.query("scancel", "--signal=TERM", slurm.query("squeue", "--steps", "-h", "-o", "%i"))
    code, said = terminal.ended(within=120)
    assert code == 0, said
    assert (run.out / "checkpoints" / f"step-{run.steps()[-1]:06d}").is_dir() and not run.finished, said
    terminal = Terminal(launches, *srun, **slurm.variables)
    run.await_step(run.steps()[-1] + 3)
    terminal.press_ctrl_c()
    time.sleep(0.3)
    terminal.press_ctrl_c()
    code, said = terminal.ended(within=30)
    assert code != 0 and "forcing job termination" in said, said
    assert launches.left_over() == {}
