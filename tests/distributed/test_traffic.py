"""What a rank gathers at ZeRO 3, counted by benchmarks/traffic.py on two real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "traffic.py"


@pytest.mark.slow
@pytest.mark.matrix
def test_passes_cost_the_sweeps_they_promise(tmp_path: Path):
    report = tmp_path / "traffic.json"
    modes = "anit_naive,anit,anit_clean,anit_pipelined,sft_tree,anit_tree"
    command = [sys.executable, str(SCRIPT), "--micro-batches", "2", "--modes", modes, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(report.read_text())["rows"]
    gathered = {row["mode"]: row["gathered_ratio_to_sft"] for row in rows}
    assert gathered["anit_naive"] > 2.9
    assert gathered["anit"] < 2.1 and gathered["anit_clean"] < 2.2
    assert gathered["sft_tree"] < 1.01 and gathered["anit_tree"] < 2.9  # the trunk's two sweeps
    # ZeRO-3 fetches ahead by the order of modules it has seen; no method may change it within a step.
    assert {row["mode"]: row["trace_invalidations"] for row in rows} == dict.fromkeys(gathered, 0)
    assert gathered["anit_pipelined"] < 1.6  # (2 + 1) / 2 sweeps, and the table for the head
