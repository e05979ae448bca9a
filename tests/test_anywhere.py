"""Killed before any change of a file, a run ends in the same numbers; a flipped bit never becomes another number.

ANIT_EVENTS and ANIT_FLIPS say how many places are tried; the suite tries a few, and 262 events are all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

EVENTS, FLIPS = (int(os.environ.get(name, "2")) for name in ("ANIT_EVENTS", "ANIT_FLIPS"))


def tried(folder: Path, what: str, tries: int) -> list[dict[str, Any]]:
    program = Path(__file__).with_name("anywhere.py")
    done = subprocess.run(
        [sys.executable, program, folder, what, str(tries)], capture_output=True, text=True, timeout=120 + 60 * tries
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_at_any_file_system_event_a_run_ends_the_same_and_without_litter(tmp_path: Path):
    events, *kills = tried(tmp_path, "kill", EVENTS)
    print(f"{len(kills)} kills at {events['events']} events")
    assert events["events"] > 100 and len(kills) == min(EVENTS, events["events"])
    for told in kills:
        assert told["killed"] and told["same"] and not told["litter"] and not told["missing"], told


# Logs and charts, which nothing reads back but the record of steps, and it the lines that are whole.
SHOWN = ("tensorboard/", "log-rank", "metrics.jsonl", ".lock")


def test_a_bit_flipped_anywhere_never_becomes_another_number(tmp_path: Path):
    flips = tried(tmp_path, "flip", FLIPS)
    print(Counter((told["state"], told["outcome"].split(":")[0]) for told in flips))
    assert len(flips) == FLIPS
    for told in flips:
        allowed = told["outcome"] in ("same", "refused") or told["file"].startswith(SHOWN)
        assert allowed and "Traceback" not in told.get("said", ""), told
