"""How a rank ends: nothing of gloo may be left to the interpreter's teardown, which it now and then aborts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matrix import rows

from anit_ds.config import Config

# Registered first, so run last: what is left of gloo when the interpreter begins to go.
THREADS = """
import atexit, sys
from pathlib import Path
def say():
    names = [thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")]
    print("torn down with", sum("gloo" in name for name in names), "threads of gloo", flush=True)
atexit.register(say)
"""
COLLECTIVES = """
import torch
from anit_ds.ranks import distributed
distributed.init()
for _ in range(20):
    distributed.all_reduce_sum(torch.ones(4))
"""
COMMAND = "from anit_ds.commands.cli import main; main()"


def two_ranks(program: str, *arguments: object) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    everyone = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", THREADS + program, *map(str, arguments)],
            env={**os.environ, **everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc on Linux only")
@pytest.mark.parametrize("last, code", [("", 0), ("raise KeyError('no such label')", 1)], ids=["well", "error"])
def test_a_script_leaves_no_thread_of_gloo_behind(last: str, code: int) -> None:
    for got, output in two_ranks(COLLECTIVES + last):
        assert got == code, output
        assert output.splitlines()[-1] == "torn down with 0 threads of gloo"


@pytest.mark.parametrize("global_batch, code", rows([(8, 0), (1, 2)], quick=[(8, 0)]), ids=["well", "refused"])
def test_the_command_ends_without_a_teardown(make_config: Callable[..., Config], global_batch: int, code: int) -> None:
    config = make_config(**{"train.max_steps": 1, "train.global_batch": global_batch, "train.micro_batch": 4})
    Path(config.out).with_suffix(".yaml").write_text(config.to_yaml())
    ends = two_ranks(COMMAND, "train", Path(config.out).with_suffix(".yaml"))
    for got, output in ends:
        assert got == code and "torn down" not in output, output
    said = ends[0][1].splitlines()
    assert any("1 is less than a sample for each of 2 ranks" in line for line in said) == (code == 2)
    assert any(line.startswith("adapter") for line in said) == (code == 0)
