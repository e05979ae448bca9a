"""Two SLURM nodes: launch/slurm.sbatch trains the tiny model and gives the one-process result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from runs import STEPS, Launches, TinyRun
from slurm import Slurm


@pytest.mark.parametrize("options", [[], ["--ranks", 2]], ids=["a-task-a-rank", "a-task-a-node"])
def test_two_slurm_nodes_give_the_one_process_result(
    slurm: Slurm,
    launches: Launches,
    tiny_run: Callable[..., TinyRun],
    one_process: Callable[..., TinyRun],
    options: list[object],
) -> None:
    run = tiny_run()
    job = slurm.submit(launches, run, *options)
    state = slurm.finished(job, timeout=120)
    assert state == "COMPLETED", run.slurm_log()
    assert run.steps() == list(range(1, STEPS + 1))
    difference = run.difference(one_process())
    print(f"two SLURM nodes: largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5
    assert launches.left_over() == {}
