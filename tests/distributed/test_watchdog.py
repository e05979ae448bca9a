"""A dead, stopped, hung or failing rank ends the whole run in a bounded time, with a line that names it.

Real processes on gloo; only `judge`, which decides whose fault it is, is also called by itself.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import ranks
from forked import Program
from ranks import free_port

from anit_ds.config import Config
from anit_ds.ranks.environment import Ranks
from anit_ds.ranks.verdict import Seen, Status, judge
from anit_ds.ranks.watchdog import Watchdog

PROGRAM = Path(__file__).with_name("ranks_program.py")
TIMEOUT = 6.0  # a loaded machine keeps a process from speaking for seconds


class Run:
    """`ranks` real processes; `ended` gives each one's exit code and output once all are gone."""

    def __init__(self, run_dir: Path, fault: str, ranks: int, timeout: float = TIMEOUT) -> None:
        everyone = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        said = run_dir.with_name(f"{run_dir.name}-said")
        said.mkdir()
        self.processes = [
            Program(
                PROGRAM, run_dir, timeout, fault,
                output=said / f"rank{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **everyone,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def ended(self, stopped: int | None = None) -> tuple[list[int], list[str]]:
        """Waits for all ranks but the one that a signal has stopped, which is then killed."""
        for rank, process in enumerate(self.processes):
            if rank == stopped:
                continue
            process.wait(120)
        if stopped is not None:
            self.processes[stopped].kill()
        return [process.wait(10) for process in self.processes], [process.said() for process in self.processes]


def verdict(run_dir: Path, rank: int) -> str:
    """The last line of a rank's log."""
    return (run_dir / f"log-rank{rank}.txt").read_text().splitlines()[-1]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named_with_its_last_step(tmp_path: Path, victim: int) -> None:
    codes, outputs = Run(tmp_path, f"kill@{victim}@7", ranks=3).ended()
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(3)]
    for rank in {0, 1, 2} - {victim}:
        assert re.search(rf"ending the run: rank {victim} \(.*\) died after step \d+", verdict(tmp_path, rank))
    shown = "".join(outputs).count("ending the run")
    assert shown == (2 if victim == 0 else 1), "rank 0 speaks for all while it lives"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_noticed_by_its_silence(tmp_path: Path, victim: int) -> None:
    started = time.monotonic()
    codes, _ = Run(tmp_path, f"stop@{victim}@7", ranks=2).ended(stopped=victim)
    assert codes[1 - victim] == 1
    assert re.search(rf"ending the run: rank {victim} \(.*\) has not answered for \d+ s", verdict(tmp_path, 1 - victim))
    assert time.monotonic() - started < 45


@pytest.mark.parametrize("victim", [0, 1])
def test_a_hung_main_thread_is_told_from_those_that_wait_for_it(tmp_path: Path, victim: int) -> None:
    codes, _ = Run(tmp_path, f"sleep@{victim}@7", ranks=2).ended()
    assert codes == [1, 1]
    for rank in range(2):
        line = verdict(tmp_path, rank)
        assert re.search(rf"no progress for 6 s after step 6: rank {victim} .*ranks_program.py:\d+ \(misbehave\)", line)
        assert f"rank {1 - victim} (" not in line


def test_long_work_of_one_rank_is_no_standstill_of_those_that_wait_for_it(tmp_path: Path) -> None:
    """Three times the timeout, half of it below a child."""
    codes, outputs = Run(tmp_path, "work@0@3", ranks=2).ended()
    assert codes == [0, 0], "\n".join(outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "function"),
    [
        (0, "anit_ds.training.loop:RunData.load"),
        (1, "anit_ds.training.model:load_model"),
        (1, "anit_ds.evaluation.evaluator:Evaluator.evaluate"),
    ],
    ids=["building", "loading", "evaluating"],
)
def test_a_rank_that_is_stopped_outside_of_training_is_named_too(
    make_config: Callable[..., Config], rank: int, function: str
) -> None:
    config = make_config(**{"train.rank_timeout": 6.0, "train.micro_batch": 4, "train.max_steps": 1})
    processes = ranks.start(2, config, stop_in=(rank, function))
    other = processes[1 - rank]
    other.join(timeout=90)
    processes[rank].kill()
    assert other.exitcode == 1
    assert re.search(rf"ending the run: rank {rank} \(.*\) has not answered", verdict(Path(config.out), 1 - rank))


def test_a_rank_that_fails_alone_ends_the_others_with_its_error(tmp_path: Path) -> None:
    codes, outputs = Run(tmp_path, "raise@1@7", ranks=3).ended()
    assert codes == [1, 1, 1]
    assert "KeyError: 'no such label'" in outputs[1]
    for rank in (0, 2):
        assert re.search(r"rank 1 \(.*\) failed after step \d+: KeyError: 'no such label'", verdict(tmp_path, rank))


def test_a_rank_that_fails_in_training_is_named_before_anybody_waits_for_it(make_config: Callable[..., Config]) -> None:
    """With steps that are not yet in the record: to write them is work of all ranks together."""
    config = make_config(**{"train.rank_timeout": 300.0, "train.micro_batch": 4, "train.log_every": 100})
    processes = ranks.start(2, config, fail_in=(1, "anit_ds.training.length:Length.evaluates_at"))
    for process in processes:
        process.join(timeout=200)
        process.kill()
    assert [process.exitcode for process in processes] == [1, 1]
    assert re.search(r"rank 1 \(.*\) failed after step 1: MemoryError: no room for it", verdict(Path(config.out), 0))


def test_an_error_that_all_ranks_share_is_left_to_each_of_them(tmp_path: Path) -> None:
    codes, outputs = Run(tmp_path, "agree@0@7", ranks=2).ended()
    assert codes == [1, 1]
    assert all("Traceback" in output and "ending the run" not in output for output in outputs)


def test_a_good_run_ends_quietly(tmp_path: Path) -> None:
    codes, outputs = Run(tmp_path, "none@0@0", ranks=2, timeout=60).ended()
    assert codes == [0, 0]
    assert all(f"rank {rank} done" in output for rank, output in enumerate(outputs))
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_a_crowded_machine_part_well(tmp_path: Path) -> None:
    """Whatever the order in which the threads that stop get the processor, no rank takes another's end for a death."""
    codes, outputs = Run(tmp_path, "crowd@0@0", ranks=3, timeout=60).ended()
    assert codes == [0, 0, 0], "\n".join(outputs)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_that_takes_its_time_is_a_good_end(tmp_path: Path) -> None:
    """The thread may be gone before the main thread comes to waking it."""

    def slowly(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name != "stop":
            return None
        if watchdog._stopping.is_set():
            watchdog._thread.join(5)
        return slowly

    watchdog = Watchdog(Ranks(0, 0, 1), None, timeout_seconds=10.0, log_dir=tmp_path)  # its thread wakes every 2 s
    before = sys.gettrace()
    sys.settrace(slowly)
    try:
        watchdog.stop()
    finally:
        sys.settrace(before)
    assert list(tmp_path.iterdir()) == []


def test_one_process_alone_is_watched_too(tmp_path: Path) -> None:
    codes, _ = Run(tmp_path, "sleep@0@7", ranks=1).ended()
    assert codes == [1]
    assert "no progress for 6 s after step 6: rank 0" in verdict(tmp_path, 0)


def seen(rank: int, *, step: int = 5, heard: float = 100.0, progressed: float = 100.0, **status: object) -> Seen:
    return Seen(replace(Status(rank, step=step), **status), heard=heard, progressed=progressed)  # type: ignore[arg-type]


def test_nobody_is_blamed_while_all_move() -> None:
    assert judge([seen(0), seen(1)], timeout=10, now=109) is None


def test_a_rank_that_is_done_may_close_and_be_silent() -> None:
    done = seen(1, heard=0, progressed=0, last_words="done")
    done.lost = True
    assert judge([seen(0), done], timeout=10, now=105) is None


def test_the_furthest_behind_is_blamed_although_another_has_stood_longer() -> None:
    ahead = seen(0, step=6, heard=109, progressed=90, waiting=True)
    behind = seen(1, step=5, heard=109, progressed=95, waiting=True)
    found = judge([ahead, behind], timeout=10, now=110)
    assert found is not None and found.ranks == (1,)


def test_who_waits_in_a_stream_is_not_blamed_but_who_has_begun_one_collective_less() -> None:
    waits = seen(0, heard=109, progressed=90, collectives=8, waiting=False)
    missing = seen(1, heard=109, progressed=91, collectives=7, waiting=False)
    found = judge([waits, missing], timeout=10, now=110)
    assert found is not None and found.ranks == (1,)


def test_nobody_is_blamed_for_waiting_while_the_one_they_wait_for_moves() -> None:
    waits = [seen(rank, heard=109, progressed=0, collectives=8, waiting=True) for rank in (1, 2)]
    moves = seen(0, heard=109, progressed=105, collectives=7)
    assert judge([moves, *waits], timeout=10, now=110) is None
    moves.status.collectives = 9
    assert judge([moves, *waits], timeout=10, now=111) is None, "it has overtaken them just now"
    for one in (moves, *waits):
        one.heard = 121
    found = judge([moves, *waits], timeout=10, now=121)
    assert found is not None and found.ranks == (1, 2)


def test_a_silent_rank_is_blamed_for_the_standstill_of_all() -> None:
    found = judge([seen(0, heard=109, progressed=99), seen(1, heard=100, progressed=99)], timeout=10, now=110)
    assert found is not None and found.ranks == (1,)
    assert "has not answered for 10 s, after step 5" in found.line


def test_a_dead_rank_s_last_step_follows_from_the_others_too() -> None:
    dead = seen(1, step=2)
    dead.lost = True
    found = judge([seen(0, step=9), dead], timeout=10, now=101)
    assert found is not None and found.line.endswith("died after step 8")


def test_all_are_named_when_nothing_tells_them_apart() -> None:
    found = judge([seen(rank, heard=110, progressed=90) for rank in range(6)], timeout=10, now=110)
    assert found is not None and found.ranks == tuple(range(6))
    assert found.line.endswith("and 2 more")
