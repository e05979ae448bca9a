"""A SLURM job whose time limit is too short saves before it, queues itself again, resumes and completes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from runs import Launches, TinyRun
from slurm import Slurm

STEPS = 30


def test_a_job_that_meets_its_time_limit_goes_on_where_it_stopped(
    slurm: Slurm, launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., TinyRun]
) -> None:
    settings = {"max_steps": STEPS, "checkpoint_every": 1000, "rank_timeout": 300}
    run = tiny_run(**settings)
    job = slurm.submit(launches, run, sbatch=("--time=1", "--signal=USR1@20"))
    run.await_step(3)
    hold_until_signalled([launches.rank(number, "SLURM_PROCID") for number in (0, 1)])
    slurm.query("scontrol", "update", f"JobId={job}", "TimeLimit=15")  # a busy machine gets nowhere in one minute
    state = slurm.finished(job, timeout=900)
    log = run.slurm_log()
    assert state == "COMPLETED", log
    assert "saved at step" in log and "queueing job" in log
    assert run.finished and not (run.out / "requeue").exists()
    assert run.steps() == list(range(1, STEPS + 1)), "every step once"
    difference = run.difference(one_process(**settings))
    print(f"queued again {log.count('queueing job')} time(s): largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5


def hold_until_signalled(ranks: list[int], within: float = 90) -> None:
    """Stops processes until SLURM signals them, some 20 to 40 s into a job of one minute: no machine is then so fast
    that the job ends before. SLURM sends a stopped process CONT with its signal."""
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    until = time.monotonic() + within
    while not all(_is_stopped(rank) for rank in ranks):  # a process on a core stops at its next interrupt
        assert time.monotonic() < until, f"not stopped in {within:g} s"
        time.sleep(0.02)
    while any(_is_stopped(rank) for rank in ranks):
        assert time.monotonic() < until, f"no signal in {within:g} s"
        time.sleep(0.2)


def _is_stopped(process: int) -> bool:
    try:
        return "State:\tT" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
