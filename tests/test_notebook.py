"""examples/tour.ipynb runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("MODEL", raising=False)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    with matplotlib.rc_context({"backend": "Agg"}):
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert f"test micro-F1 {names['summary']['after']['micro_f1']:.3f}" in said and "'probabilities'" not in said
    losses = [line["loss/clean"] for line in names["lines"] if "loss/clean" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert names["attacked"][-1] > names["attacked"][0], "a longer step raises the loss"
