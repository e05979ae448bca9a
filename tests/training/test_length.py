"""A run that stops early where dev gets no better, and a run that is asked for more in the folder it ended in."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from resumed import assert_a_resume_is_exact
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.training import loop, train
from anit_ds.training.length import Length

MakeConfig = Callable[..., Config]
Anit = Callable[..., str]
# Neither looks at a run's length.
CONSTANT = {"train.lr_schedule": "constant", "train.warmup": 0.0}


def weights(config: Config) -> dict[str, Any]:
    """The float32 weights of the last checkpoint."""
    newest = max((Path(config.out) / "checkpoints").iterdir())
    return load_file(newest / "weights.safetensors") | load_file(newest / "optimizer.safetensors")


def same(a: Config, b: Config) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def log(config: Config) -> str:
    return (Path(config.out) / "log-rank0.txt").read_text()


def rates(config: Config) -> list[float]:
    lines = map(json.loads, (Path(config.out) / "metrics.jsonl").read_text().splitlines())
    return [line["lr"] for line in lines if "lr" in line]


def test_early_stopping(make_config: MakeConfig, anit: Anit, tmp_path: Path) -> None:
    """A random model's dev score does not move at this rate: two evaluations after the first, it stops."""
    config = make_config(**{"train.epochs": 5, "train.lr": 1e-6, "eval.every": 1.0, "train.early_stopping_patience": 2})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    why = "early stopping at step 9 of 15: 2 evaluations on dev after that of step 3 were not better"
    assert why in anit("train", tmp_path / "run.yaml") and why in log(config)
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["steps"] == 9 and summary["dev"]["step"] == 3 and summary["after"]
    assert_a_resume_is_exact(config, last="step-000009")
    assert len(rates(config)) == 9
    # More patience is more of the same run: it is the one that had it from the start.
    straight = make_config(
        "straight", **{"train.epochs": 5, "train.lr": 1e-6, "eval.every": 1.0, "eval.test": False}
    )  # fmt: skip
    anit("train", tmp_path / "run.yaml", "train.early_stopping_patience=null")
    train(straight)
    assert same(straight, config) and rates(straight) == rates(config)
    assert "null there and 2 here; a run can get more patience" in anit("train", tmp_path / "run.yaml", code=2)
    # Asked for 18 steps it goes on at the rates of a run of 18, whose warm-up is over.
    anit("train", tmp_path / "run.yaml", "train.early_stopping_patience=null", "train.epochs=6")
    warm = math.ceil(18 * config.train.warmup)
    cosine = [5e-7 * (1 + math.cos(math.pi * (step - warm) / (18 - warm))) for step in (15, 16, 17)]
    assert rates(config) == [*rates(straight), *(pytest.approx(rate, rel=1e-9) for rate in cosine)]


def test_early_stopping_needs_evaluations_on_dev(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="eval.every: null makes none before the end"):
        make_config(**{"train.early_stopping_patience": 1})
    with pytest.raises(InputError, match="makes the first at step 9 of 6"):
        train(make_config(**{"train.early_stopping_patience": 1, "eval.every": 3.0}))


def test_a_finished_run_goes_on(make_config: MakeConfig, anit: Anit, tmp_path: Path) -> None:
    straight, extended = (
        make_config(name, **CONSTANT, **{"train.epochs": 4, "eval.test": test})
        for name, test in (("straight", False), ("extended", True))
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(extended.to_yaml())
    train(straight)
    anit("train", tmp_path / "run.yaml", "train.epochs=2")
    said = anit("train", tmp_path / "run.yaml")
    assert "goes on after 6 steps to 12, where it was a run of 6" in log(extended)
    assert "went on from 6 steps" in said
    assert json.loads((Path(extended.out) / "summary.json").read_text())["extended_from"] == [6]
    assert same(straight, extended) and rates(straight) == rates(extended) and len(rates(extended)) == 12
    assert "is finished" in anit("train", tmp_path / "run.yaml")
    assert "holds a run of 12 steps" in anit("train", tmp_path / "run.yaml", "train.max_steps=7", code=2)
    assert "train.lr: 0.001 there, 0.1 here" in anit("train", tmp_path / "run.yaml", "train.lr=0.1", code=2)
    assert "micro-F1" in anit("eval", extended.out), "what was refused changed nothing"


def test_a_longer_run_that_cannot_begin_leaves_the_finished_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = make_config(**{"method": {"name": "sft"}, "train.max_steps": 2, "eval.test": False})
    train(short)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(loop, "build_model", Mock(side_effect=MemoryError))
        train(make_config(**{"method": {"name": "sft"}, "train.max_steps": 3, "eval.test": False}))
    assert train(short) is not None and log(short).rstrip().endswith("is finished; --fresh trains it again")


def test_another_base_model_under_the_same_name_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    base = tmp_path / "base"
    settings = {"method": {"name": "sft"}, "eval.test": False, "model.name_or_path": str(base)}
    shutil.copytree(make_config().model.name_or_path, base)
    train(make_config(**settings, **{"train.max_steps": 1}))
    file = base / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"model.name_or_path: {base} is not the model that the run in this folder"):
        train(make_config(**settings, **{"train.max_steps": 2}))


def test_the_end_of_a_shorter_run_costs_no_patience(make_config: MakeConfig) -> None:
    """Dev is scored at steps 3, 6, 9 and so on, and at the end of the shorter run, step 7."""
    sft = {"method": {"name": "sft"}, **CONSTANT, "train.lr": 1e-6, "eval.every": 1.0, "eval.test": False}
    patient = {**sft, "train.early_stopping_patience": 2}
    straight, extended = (make_config(name, **patient, **{"train.max_steps": 12}) for name in ("straight", "extended"))
    train(straight)
    train(make_config("extended", **patient, **{"train.max_steps": 7}))
    train(extended)
    assert same(straight, extended) and len(rates(straight)) == len(rates(extended)) == 9


def test_dev_scores_the_weights_of_whole_minibatches(make_config: MakeConfig) -> None:
    ours = make_config(**{"method": {"name": "anit", "preset": "ours"}, "eval.every": 0.5, "train.epochs": 2})
    assert Length.of(ours, per_epoch=3).dev_interval == 4
    train(ours)
    lines = map(json.loads, (Path(ours.out) / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "dev/micro_f1" in line] == [4, 8, 12]


def test_a_run_that_ended_inside_a_minibatch_does_not_go_on(make_config: MakeConfig) -> None:
    freeat = {"method": {"name": "freeat", "eps": 1.0, "alpha": 0.1, "steps": 2}}
    short = make_config(**freeat, **{"train.max_steps": 3, "eval.test": False, "train.checkpoint_every": 2})
    train(short)
    with pytest.raises(InputError, match="of step 3, is between the 2 replays of a minibatch"):
        train(make_config(**freeat, **{"train.max_steps": 4, "eval.test": False, "train.checkpoint_every": 2}))
    assert train(short) is not None and log(short).rstrip().endswith("is finished; --fresh trains it again")
    # Interrupted before its end it stands between minibatches, as every checkpoint on the way does.
    shutil.rmtree(Path(short.out) / "checkpoints" / "step-000003")
    (Path(short.out) / "summary.json").unlink()
    longer = make_config(**freeat, **{"train.max_steps": 4, "eval.test": False, "train.checkpoint_every": 2})
    assert train(longer)["steps"] == 4
