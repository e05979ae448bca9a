"""A SLURM job whose time limit is too short saves before it, queues itself again, resumes and completes."""

from __future__ import annotations

from collections.abc import Callable

from runs import Launches, TinyRun
from slurm import Slurm

# More steps than fit before the signal, which SLURM gives some 20 to 40 s into a job of one minute: 120 once fitted on
# a machine with nothing else to do.
MANY = 400


def test_a_job_that_meets_its_time_limit_goes_on_where_it_stopped(
    slurm: Slurm, launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., TinyRun]
) -> None:
    run = tiny_run(max_steps=MANY, checkpoint_every=1000)
    job = slurm.submit(launches, run, sbatch=("--time=1", "--signal=USR1@20"))
    state = slurm.finished(job, timeout=900)
    log = run.slurm_log()
    assert state == "COMPLETED", log
    assert "saved at step" in log and "queueing job" in log
    assert run.finished and not (run.out / "requeue").exists()
    assert run.steps() == list(range(1, MANY + 1)), "every step once"
    difference = run.difference(one_process(max_steps=MANY, checkpoint_every=1000))
    print(f"queued again {log.count('queueing job')} time(s): largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5
