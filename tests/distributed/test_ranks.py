"""Who a process is, read from what launchers and srun put into the environment."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import pytest
from forked import CONTEXT

from anit_ds.errors import InputError
from anit_ds.ranks import distributed
from anit_ds.ranks.distributed import Ranks, ranks_from

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TWO = {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}


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
    beside = {**environment, "SLURM_STEP_ID": "1"}
    assert ranks_from(environment) == ranks_from(beside) == Ranks(3, 1, 4)
    assert environment["MASTER_PORT"] == "28007"
    assert beside["MASTER_PORT"] == "23926", "two steps of one job"


def test_a_bare_sbatch_shell_is_one_process() -> None:
    assert ranks_from({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}) == Ranks(0, 0, 1)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", **MEET}, "sets RANK and WORLD_SIZE but not LOCAL_RANK"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **MEET}, "cannot be"),
        ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **MEET}, "must be numbers"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, "no MASTER_PORT"),
        ({**TWO, "MASTER_PORT": "abc"}, "a port from 1 to 65535, not 'abc'"),
        ({**TWO, "MASTER_PORT": "99999"}, "a port from 1 to 65535, not '99999'"),
    ],
    ids=["part", "impossible", "words", "nowhere", "no number", "no port"],
)
def test_what_does_not_fit_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ranks_from(environment)


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = _alone_of_two(str(other.getsockname()[1]), "distributed._meet(20)")
    assert "RunFailed: MASTER_PORT: " in done.stderr and "is taken on this machine" in done.stderr


def test_a_second_ctrl_c_ends_the_wait_for_the_other_ranks() -> None:
    press = "threading.Timer(2, os.kill, [os.getpid(), signal.SIGINT]).start()"
    twice = f"signals.Signals(); {press}; {press.replace('(2', '(4')}; distributed._meet(60)"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = _alone_of_two(port, twice)
    assert "KeyboardInterrupt" in done.stderr and "Ctrl-C once more ends it at once" in done.stderr


def _alone_of_two(port: str, call: str) -> subprocess.CompletedProcess[str]:
    """Rank 0 of two, in a process of its own, while there is no other."""
    program = f"import os, signal, threading; from anit_ds.ranks import distributed, signals; {call}"
    environment = {**os.environ, **TWO, "MASTER_PORT": port}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=50)


def test_runs_side_by_side_do_not_meet_on_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        alone = {**MEET, "MASTER_PORT": str(other.getsockname()[1]), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        ours, theirs = multiprocessing.Pipe()
        process = CONTEXT.Process(target=_init, args=(alone, theirs))
        process.start()
        process.join(120)
    assert process.exitcode == 0 and ours.recv() == (1, True)


def _init(environment: dict[str, str], to: Connection) -> None:
    os.environ.update(environment)
    to.send((distributed.init().world_size, distributed.any_rank(True)))
