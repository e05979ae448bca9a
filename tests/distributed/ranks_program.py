"""A rank for the tests: gloo all-reduces under the watchdog until step 1000, misbehaving at one step as told.

    python ranks_program.py RUN_DIR TIMEOUT FAULT@RANK@STEP

FAULT: kill, stop, sleep, raise (an error of its own), agree (the same error on every rank), none; work (long, and
without a beat, by itself and by a child). Or crowd: many watchdogs of one step each on a machine so crowded that their
threads may lose the processor at any line.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from anit_ds.ranks import distributed, watchdog


def main() -> None:
    run_dir, timeout, (fault, at_rank, at_step) = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split("@")
    if fault == "crowd":
        random.seed(os.environ["RANK"])
        sys.settrace(lose_the_processor)
        threading.settrace(lose_the_processor)
    for _ in range(12 if fault == "crowd" else 1):
        with distributed.watched(timeout, run_dir) as watching:
            for step in range(1, {"none": 6, "work": 6, "crowd": 2}.get(fault, 1001)):
                if step == int(at_step) and (distributed.rank() == int(at_rank) or fault == "agree"):
                    misbehave(fault, watching, timeout)
                distributed.all_reduce_sum(torch.ones(4))
                watching.beat(step)
    print(f"rank {distributed.rank()} done", flush=True)


def lose_the_processor(frame: FrameType, event: str, argument: Any) -> Any:
    """A trace function: pauses at random lines of what a watchdog's two threads do when it stops."""
    if frame.f_code.co_filename != watchdog.__file__ or frame.f_code.co_name not in ("_watch", "stop"):
        return None
    if random.random() < 0.3:
        time.sleep(0.03)
    return lose_the_processor


def misbehave(fault: str, watching: distributed.Watchdog, timeout: float) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(600)
    elif fault in ("raise", "agree"):
        raise KeyError("no such label")
    elif fault == "work":
        with watching.working():
            until = time.monotonic() + 1.5 * timeout
            while time.monotonic() < until:
                pass
            subprocess.run(["timeout", str(1.5 * timeout), "sh", "-c", "while :; do :; done"], check=False)


if __name__ == "__main__":
    main()
