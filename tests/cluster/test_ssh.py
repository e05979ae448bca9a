"""Two nodes over ssh: launch/ssh.sh trains the tiny model and gives the one-process result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runs import LAUNCH, STEPS, Launches, TinyRun
from sshd import HOSTS, Sshd


def test_two_hosts_give_the_one_process_result(
    sshd: Sshd, launches: Launches, tiny_run: Callable[..., TinyRun], one_process: Callable[..., Any]
) -> None:
    run = tiny_run()
    code, output = launches.run(
        LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile, "anit", "train", run.config, **sshd.variables
    )
    assert code == 0, output
    assert run.steps() == list(range(1, STEPS + 1))
    difference = run.difference(one_process())
    print(f"two hosts over ssh ({', '.join(HOSTS)}): largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5
    assert launches.left_over() == {}


def test_a_host_that_does_not_answer_is_said_before_anything_starts(
    sshd: Sshd, launches: Launches, tiny_run: Callable[..., TinyRun]
) -> None:
    run = tiny_run()
    sshd.hostfile.write_text("127.0.0.2 slots=1\n127.0.0.9 slots=1\n")
    code, output = launches.run(
        LAUNCH / "ssh.sh", "--hostfile", sshd.hostfile, "anit", "train", run.config, **sshd.variables
    )
    assert code == 2
    assert "not every host" in output
    assert not (run.out / "checkpoints").exists()
