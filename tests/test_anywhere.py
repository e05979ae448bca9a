"""Killed before any change of a file, a run ends in the same numbers; a flipped bit never becomes another number.

ANIT_EVENTS and ANIT_FLIPS say how many places are tried; the suite tries a few, and some 270 events are all of them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from forked import Program

EVENTS, FLIPS = (int(os.environ.get(name, "2")) for name in ("ANIT_EVENTS", "ANIT_FLIPS"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of every try, from one process that has trained the undisturbed run."""
    folder = tmp_path_factory.mktemp("anywhere")
    asked = ("kill", EVENTS, "flip", FLIPS)
    program = Program(Path(__file__).with_name("anywhere.py"), folder, *asked, output=folder / "told")
    assert program.wait(240 + 60 * (EVENTS + FLIPS)) == 0, program.said()[-3000:]
    return [json.loads(line) for line in program.said().splitlines() if line.startswith("{")]


def test_killed_at_any_file_system_event_a_run_ends_the_same_and_without_litter(told: list[dict[str, Any]]):
    events, *kills = (line for line in told if "state" not in line)
    print(f"{len(kills)} kills at {events['events']} events")
    assert events["events"] > 100 and len(kills) == min(EVENTS, events["events"])
    for one in kills:
        assert one["killed"] and one["same"] and not one["litter"] and not one["missing"], one


# Logs and charts, which nothing reads back but the record of steps, and it the lines that are whole.
SHOWN = ("tensorboard/", "log-rank", "metrics.jsonl", ".lock")


def test_a_bit_flipped_anywhere_never_becomes_another_number(told: list[dict[str, Any]]):
    flips = [line for line in told if "state" in line]
    print(Counter((one["state"], one["outcome"].split(":")[0]) for one in flips))
    assert len(flips) == FLIPS
    for one in flips:
        allowed = one["outcome"] in ("same", "refused") or one["file"].startswith(SHOWN)
        assert allowed and "Traceback" not in one.get("said", ""), one
