"""A killed rank: `--restarts` starts again from the last checkpoint and reaches the result of an undisturbed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from runs import LAUNCH, Launches, TinyRun
from slurm import Slurm
from sshd import Sshd

STEPS = 24


@pytest.mark.parametrize("victim", [0, 1])
def test_a_local_run_survives_a_killed_rank(
    launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., TinyRun], victim: int
) -> None:
    run = tiny_run(max_steps=STEPS)
    launch = launches.start(LAUNCH / "local.sh", "--ranks", 2, "--restarts", 1, "anit", "train", run.config)
    run.await_checkpoint(4)
    os.kill(launches.rank(victim), signal.SIGKILL)
    output, _ = launch.communicate(timeout=400)
    assert launch.returncode == 0, output
    assert f"rank {victim} ended with code 137 (SIGKILL)" in output
    assert "restart 1 of 1" in output and "resumed from" in output
    assert_undisturbed(run, one_process, "local, a rank killed and started again")


def test_an_ssh_run_survives_a_killed_rank(
    sshd: Sshd, launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., TinyRun]
) -> None:
    run = tiny_run(max_steps=STEPS)
    launch = launches.start(
        LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile, "--restarts", 1, "anit", "train", run.config, **sshd.variables
    )
    run.await_checkpoint(4)
    os.kill(launches.rank(1), signal.SIGKILL)
    output, _ = launch.communicate(timeout=400)
    assert launch.returncode == 0, output
    assert "restart 1 of 1" in output and "resumed from" in output
    assert_undisturbed(run, one_process, "ssh, a rank killed and started again")


def test_a_slurm_job_survives_a_killed_rank(
    slurm: Slurm, launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., TinyRun]
) -> None:
    run = tiny_run(max_steps=STEPS)
    job = slurm.submit(launches, run, "--restarts", 1)
    run.await_checkpoint(4)
    os.kill(launches.rank(1, variable="SLURM_PROCID"), signal.SIGKILL)
    state = slurm.finished(job, timeout=400)
    assert state == "COMPLETED", run.slurm_log()
    assert "restart 1 of 1" in run.slurm_log()
    assert_undisturbed(run, one_process, "SLURM, a rank killed and started again")


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_a_signal_to_the_launcher_saves_and_the_same_line_goes_on(
    launches: Launches,
    sshd: Sshd,
    tiny_run: Callable[..., TinyRun],
    one_process: Callable[..., TinyRun],
    way: str,
) -> None:
    run = tiny_run(max_steps=STEPS, checkpoint_every=1000)
    start: tuple[object, ...] = (LAUNCH / "local.sh", "--ranks", 2)
    if way == "ssh":
        start = (LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile)
    line = (*start, "anit", "train", run.config)
    launch = launches.start(*line, **sshd.variables)
    run.await_step(4)
    launch.send_signal(signal.SIGUSR1)
    output, _ = launch.communicate(timeout=200)
    assert launch.returncode == 0, output
    assert "ended by a signal, state saved" in output
    assert (run.out / "requeue").exists() and not run.finished
    code, output = launches.run(*line, **sshd.variables)
    assert code == 0 and "resumed from" in output
    assert not (run.out / "requeue").exists()
    assert_undisturbed(run, one_process, f"{way}, told to stop and started again")


def assert_undisturbed(run: TinyRun, one_process: Callable[..., TinyRun], how: str) -> None:
    assert run.steps() == list(range(1, STEPS + 1)), "every step once"
    difference = run.difference(one_process(max_steps=STEPS))
    print(f"{how}: largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5
