"""A rank for the tests: gloo all-reduces under the watchdog until step 1000, misbehaving at one step as told.

    python ranks_program.py RUN_DIR TIMEOUT FAULT@RANK@STEP

FAULT: kill, stop, sleep, raise (an error of its own), agree (the same error on every rank), none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from anit_ds import distributed


def main() -> None:
    run_dir, timeout, (fault, at_rank, at_step) = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split("@")
    ranks = distributed.init()
    watchdog = distributed.Watchdog(timeout_seconds=timeout, run_dir=run_dir)
    try:
        for step in range(1, 1001 if fault != "none" else 6):
            if step == int(at_step) and (ranks.rank == int(at_rank) or fault == "agree"):
                misbehave(fault)
            distributed.all_reduce_sum(torch.ones(4))
            watchdog.beat(step)
    finally:
        watchdog.stop()
    print(f"rank {ranks.rank} done", flush=True)


def misbehave(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(600)
    elif fault in ("raise", "agree"):
        raise KeyError("no such label")


if __name__ == "__main__":
    main()
