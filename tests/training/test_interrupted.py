"""A signal during an evaluation is heard within a batch of it, and the run that goes on ends bit-equal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.evaluation import Evaluator
from anit_ds.training import train

MakeConfig = Callable[..., Config]


class Evaluations:
    """Counts evaluations and the batches of each, and sends a signal at the first batch of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop_in, self.which = 0, signal.SIGTERM
        self.batches: list[tuple[str, int]] = []
        evaluate = Evaluator.evaluate

        def counted(evaluator: Evaluator, model: Any, split: str, **how: Any) -> Any:
            heartbeat, number = how.pop("heartbeat"), len(self.batches) + 1
            self.batches.append((split, 0))

            def beat() -> None:
                if number == self.stop_in and not self.batches[-1][1]:
                    os.kill(os.getpid(), self.which)
                self.batches[-1] = (split, self.batches[-1][1] + 1)
                heartbeat()

            return evaluate(evaluator, model, split, heartbeat=beat, **how)

        monkeypatch.setattr(Evaluator, "evaluate", counted)


def test_a_signal_in_any_evaluation(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, on dev in the middle and at the end, on test: one run that is stopped in each of them."""
    settings = {
        "eval.every": 1.0, "eval.before": True, "eval.batch_size": 1, "lora.dropout": 0.2, "train.optimizer": "sgd",
        "train.lr": 0.3,
    }  # fmt: skip
    straight, stopped = make_config("straight", **settings), make_config("stopped", **settings)
    evaluations = Evaluations(monkeypatch)
    expected = train(straight)
    assert [split for split, _ in evaluations.batches] == ["test", "dev", "dev", "test"]
    assert min(count for _, count in evaluations.batches) > 10

    for which, (stop_in, said) in zip(
        (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM),
        ((1, "step 0"), (2, "step 3"), (2, "step 6"), (2, "step 6")),
        strict=True,
    ):
        evaluations.batches.clear()
        evaluations.stop_in, evaluations.which = stop_in, which
        assert train(stopped) is None
        assert evaluations.batches[-1][1] == 1, "the evaluation went on"
        assert (Path(stopped.out) / "requeue").read_text() == f"{which.name} at {said}\n"
    evaluations.stop_in = 0
    summary = train(stopped)
    # The start before made up for dev at step 6 and ended without a checkpoint, so this one does so again.
    lines = map(json.loads, (Path(stopped.out) / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "dev/micro_f1" in line] == [3, 6]
    assert summary is not None and expected is not None
    assert {k: summary[k] for k in ("dev", "after", "before")}["dev"] == expected["dev"]
    assert summary["before"] == expected["before"] and summary["after"]["nll"] == expected["after"]["nll"]
    one, two = (load_file(Path(c.out) / "adapter" / "adapter_model.safetensors") for c in (straight, stopped))
    assert max(one[name].abs().max().item() for name in one if "lora_B" in name) > 1e-3, "it starts at 0"
    assert all(one[name].equal(two[name]) for name in one)
