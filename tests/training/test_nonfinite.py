"""Losses and gradients that are not finite: named, counted, null in the record, and never in the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anit_ds.commands.entry import run as run_command
from anit_ds.commands.train import train as train_command
from anit_ds.config import Config
from anit_ds.errors import InputError, RunFailed
from anit_ds.training import train
from anit_ds.training.nonfinite import LostSteps

MakeConfig = Callable[..., Config]


def strict_metrics(config: Config) -> list[dict[str, Any]]:
    """The record's lines as a reader takes them who knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize(
    ("stage", "dtype"),
    rows([(0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")], quick=[(1, "bfloat16")]),
)
def test_one_broken_text_costs_its_steps(
    make_config: MakeConfig, broken_token: Path, broken_text: Path, stage: int, dtype: str
) -> None:
    config = make_config(
        **{
            "model": {"name_or_path": str(broken_token), "dtype": dtype},
            "data.path": str(broken_text),
            "deepspeed": {"zero_optimization": {"stage": stage}},
            "train.micro_batch": 2,
            "train.epochs": 2,
            "eval.every": 1.0,
        }
    )
    summary = train(config)
    steps = [line for line in strict_metrics(config) if "lr" in line]
    lost = [line["step"] for line in steps if line["grad_norm"] is None]
    assert len(lost) == 2 == summary["nonfinite_steps"] and summary["scaler_skips"] == 0
    assert [line["step"] for line in steps if line["loss/clean"] is None] == lost
    assert all(line["grad_norm"] > 0 for line in steps if line["step"] not in lost)
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/clean")] == [n for n in range(1, 7) if n not in lost]
    log = (Path(config.out) / "log-rank0.txt").read_text()
    for step in lost:
        assert (
            f"step {step} (jsonl): not finite: loss/adversarial, loss/clean, the gradient; the step is skipped" in log
        )
    weights = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    dev = json.loads((Path(config.out) / "eval" / "dev.json").read_text())
    assert dev["nll"] is None and dev["nonfinite"] == 1 and "gives 1 of 6 gold answers no finite" in dev["notes"][-1]
    assert summary["after"]["nll"] > 0 and summary["after"]["nonfinite"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"train.lr": 1e30, "train.grad_clip": 0.0, "train.optimizer": "sgd", "train.warmup": 0.0},
        {"train.lr": 1e6, "eval.every": None},
    ],
    ids=["sgd", "adamw"],
)
def test_a_run_that_diverges_fails_in_one_sentence(
    make_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    config = make_config(**{"eval.every": 1.0, "train.epochs": 4, "train.log_every": 1, **change})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    with pytest.raises(SystemExit) as end:
        run_command(train_command, [str(tmp_path / "run.yaml")])
    out = Path(config.out)
    assert end.value.code == 1
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("anit: ")]
    steps = [line for line in strict_metrics(config) if "lr" in line]
    first = next(line["step"] for line in steps if line["grad_norm"] is None)
    assert first > 1 and f"(from step {first} on)" in sentence
    assert f"Try a smaller train.lr (it is {config.train.lr:g}," in sentence
    assert not (out / "adapter").exists() and not (out / "summary.json").exists()
    assert 4 <= steps[-1]["step"] < 12, "it goes on though no batch is left to try"


def test_a_model_that_is_broken_fails_before_it_has_an_adapter(
    make_config: MakeConfig, broken_token: Path, review_folder: Path, tmp_path: Path
) -> None:
    """Every training text has a ~; dev has none, so the untouched model would be the best on it."""
    (tmp_path / "reviews").mkdir()
    for file in review_folder.iterdir():
        text = file.read_text()
        (tmp_path / "reviews" / file.name).write_text(text.replace("train", "~") if file.stem == "train" else text)
    config = make_config(
        **{"model.name_or_path": str(broken_token), "data.path": str(tmp_path / "reviews"), "eval.every": 1.0}
    )
    with pytest.raises(RunFailed, match="not one of [1-6] steps had one"):
        train(config)
    assert not (Path(config.out) / "adapter").exists()


def test_a_loss_scale_that_is_too_large_is_no_fault() -> None:
    lost = LostSteps(float16=True)
    lost.note(1, {"loss/clean": 1.0, "grad_norm": math.inf}, "x")
    lost.note(2, {"loss/clean": math.nan, "grad_norm": math.inf}, "x")
    lost.note(3, {"loss/clean": 1.0, "grad_norm": 1.0}, "x")
    assert (lost.scaler_skips, lost.nonfinite, lost.finite, lost.first) == (1, 1, 1, 2)


def test_the_guard_of_the_weights_cannot_be_switched_off(make_config: MakeConfig) -> None:
    for change in (
        {"bf16": {"check_grad_overflow": False}},
        {"zero_optimization": {"stage": 1, "compute_grad_norm": False}},
    ):
        with pytest.raises(InputError, match="is false, but it guards the weights"):
            train(make_config(deepspeed=change, **{"train.grad_clip": 0.0}))
