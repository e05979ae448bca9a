"""Who a process is, read from what launchers and srun put into the environment."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anit_ds.errors import InputError
from anit_ds.ranks.distributed import Ranks, ranks_from

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_a_launcher_there_is_one_rank() -> None:
    environment = {"MASTER_PORT": "29500"}
    assert ranks_from(environment) == Ranks(0, 0, 1)
    assert environment["LOCAL_RANK"] == "0", "DeepSpeed reads it"


def test_a_launcher_s_variables_are_taken() -> None:
    assert ranks_from({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", **MEET}) == Ranks(3, 1, 4)


def test_a_task_of_srun_takes_slurm_s() -> None:
    environment = {
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "20007",
        "MASTER_ADDR": "n1",
    }  # fmt: skip
    assert ranks_from(environment) == Ranks(3, 1, 4)
    assert environment["MASTER_PORT"] == "20007"


def test_a_bare_sbatch_shell_is_one_process() -> None:
    assert ranks_from({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}) == Ranks(0, 0, 1)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", **MEET}, "sets RANK and WORLD_SIZE but not LOCAL_RANK"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **MEET}, "cannot be"),
        ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **MEET}, "must be numbers"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "no MASTER_PORT"),
    ],
    ids=["part", "impossible", "words", "nowhere"],
)
def test_what_does_not_fit_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ranks_from(environment)


def test_runs_side_by_side_do_not_meet_on_a_port() -> None:
    program = "from anit_ds.ranks import distributed as d; print(d.init().world_size, d.any_rank(True))"
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", **MEET, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].split() for process in both] == [["1", "True"], ["1", "True"]]
