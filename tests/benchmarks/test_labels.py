"""The benchmark of labels on a tiny run: what it writes, and that other probabilities stop it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.config import Config
from anit_ds.training import train


def test_a_row_a_call_and_no_speed_of_wrong_probabilities(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import labels

    config = make_config(**{"train.epochs": 1, "eval.test": False, "eval.batch_size": 3})
    train(config)
    call = [config.out, "--rounds", "1", "--json", str(tmp_path / "labels.json")]
    labels.main(call)
    labels.main([*call, "--labels", "40"])
    own, many = json.loads((tmp_path / "labels.json").read_text())["rows"]
    assert (own["texts"], own["labels"], many["labels"]) == (6, 2, 40) and own["difference"] < 1e-5
    assert all(many[way] > 0 for way in ("greedy", "labels_a_second", "one_by_one", "both"))
    monkeypatch.setattr(labels, "_SAME", -1.0)
    with pytest.raises(SystemExit, match="the gate is red"):
        labels.main(call)
