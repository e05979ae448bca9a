"""However a launch ends, none of its processes is left."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from runs import LAUNCH, Launches, TinyRun
from slurm import Slurm
from sshd import Sshd

STEPS = 1000


@pytest.mark.parametrize("which", ["rank", "launcher", "interrupt"])
def test_local(launches: Launches, tiny_run: Callable[..., TinyRun], which: str) -> None:
    run = tiny_run(max_steps=STEPS)
    launch = launches.start(LAUNCH / "local.sh", "--ranks", 2, "anit", "train", run.config)
    run.await_checkpoint(2)
    if which == "rank":
        os.kill(launches.rank(1), signal.SIGKILL)
    elif which == "launcher":
        launch.kill()
    else:
        launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=200)
    assert launch.returncode == {"rank": 1, "launcher": -signal.SIGKILL, "interrupt": 0}[which]
    assert launches.left_over() == {}


def test_a_stopped_rank_is_killed_too(launches: Launches, tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run(max_steps=STEPS, rank_timeout=4)
    launch = launches.start(LAUNCH / "local.sh", "--ranks", 2, "anit", "train", run.config)
    run.await_checkpoint(2)
    os.kill(launches.rank(1), signal.SIGSTOP)
    output, _ = launch.communicate(timeout=200)
    assert launch.returncode == 1
    assert re.search(r"ending the run: rank 1 \(.*\) has not answered for \d+ s, after step \d+", output), output
    assert launches.left_over() == {}


@pytest.mark.parametrize("which", ["rank", "launcher"])
def test_ssh(sshd: Sshd, launches: Launches, tiny_run: Callable[..., TinyRun], which: str) -> None:
    run = tiny_run(max_steps=STEPS)
    launch = launches.start(
        LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile, "anit", "train", run.config, **sshd.variables
    )
    run.await_checkpoint(2)
    if which == "rank":
        os.kill(launches.rank(0), signal.SIGKILL)
    else:
        launch.kill()
    launch.communicate(timeout=200)
    assert launch.returncode == {"rank": 1, "launcher": -signal.SIGKILL}[which]
    assert launches.left_over() == {}


@pytest.mark.parametrize("which", ["rank", "cancel"])
def test_slurm(slurm: Slurm, launches: Launches, tiny_run: Callable[..., TinyRun], which: str) -> None:
    run = tiny_run(max_steps=STEPS)
    job = slurm.submit(launches, run)
    run.await_checkpoint(2)
    if which == "rank":
        os.kill(launches.rank(1, variable="SLURM_PROCID"), signal.SIGKILL)
        assert slurm.finished(job, timeout=200) == "FAILED"
    else:
        slurm.query("scancel", job)
        assert slurm.finished(job, timeout=200) == "CANCELLED"
    time.sleep(0.5)
    assert launches.left_over() == {}
