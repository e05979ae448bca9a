"""What a run tells: TensorBoard's hparams tab, other trackers over an interruption, and a bar that moves every step."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from anit_ds.adversarial import StepStats
from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.runfolder import RunFolder
from anit_ds.training import train
from anit_ds.training.monitor import Monitor
from anit_ds.training.nonfinite import LostSteps

MakeConfig = Callable[..., Config]


class Service(tracking.GeneralTracker):
    """Stands in for wandb, whose arguments it takes: a list for each id of what it was told."""

    name, requires_logging_directory, main_process_only = "wandb", False, False
    told: dict[str, list[tuple[int | None, dict[str, Any]]]] = {}
    fails_at: int | None = None

    def __init__(self, project: str, *, id: str, name: str, resume: str) -> None:
        super().__init__()
        self.key = f"{project}/{id}"

    @property
    def tracker(self) -> str:
        return self.key

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.setdefault(self.key, []).append((None, values))

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        if step == self.fails_at:
            raise ConnectionError("the service is gone")
        self.told[self.key].append((step, values))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Service]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, "wandb"])
    monkeypatch.setattr(Service, "told", {})
    return Service


def monitor(config: Config, start: int = 0) -> Monitor:
    run = RunFolder(config.out)
    run.begin(config)
    return Monitor(config, run, LostSteps(float16=False), total_steps=6, start=start)


def step(number: int) -> tuple[int, StepStats, dict[str, float], str]:
    stats = StepStats()
    stats["loss/clean"] = torch.tensor([1.0 / number, 1.0])
    return number, stats, {"lr": 0.1, "grad_norm": 1.0}, "jsonl"


def test_the_hparams_tab_has_what_runs_are_compared_by_and_their_scores(
    make_config: MakeConfig, review_folder: Path, tmp_path: Path
):
    """The tiny model repeats the last byte of its prompt, which is the answer to three of five texts of dev, and to
    three of six of test."""
    data = shutil.copytree(review_folder, tmp_path / "reviews")
    own = data / "instructions.yaml"
    own.write_text(own.read_text().replace("positive: positive", 'positive: "::::"'))
    (data / "dev.jsonl").write_text("".join((data / "dev.jsonl").read_text().splitlines(keepends=True)[:5]))
    config = make_config(**{
        "data.path": str(data), "data.instructions_file": str(own), "method.name": "pgd", "method.eps": 0.5,
        "train.lr": 1e-6,
    })  # fmt: skip
    summary = train(config)
    assert summary is not None and (summary["dev"]["micro_f1"], summary["after"]["micro_f1"]) == (0.6, 0.5)
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    shown = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert {name: shown[name].number_value for name in ("method.eps", "train.lr", "train.seed")} == {
        "method.eps": 0.5, "train.lr": config.train.lr, "train.seed": config.train.seed
    }  # fmt: skip
    assert shown["method.name"].string_value == "pgd" and "method.neftune_alpha" not in shown
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    scores = {info.name.tag: events.Scalars(info.name.tag)[-1].value for info in experiment.metric_infos}
    assert scores == {"final/test_micro_f1": pytest.approx(0.5), "final/dev_micro_f1": pytest.approx(0.6)}


def test_a_resumed_run_goes_on_in_the_same_run_of_a_tracker_and_tells_no_step_twice(
    make_config: MakeConfig, service: type[Service]
):
    config = make_config(**{"train.report_to": "wandb", "train.log_every": 1})
    first = monitor(config)
    for number in (1, 2, 3):
        first.step(*step(number))
    second = monitor(config, start=2)  # killed before anything was closed; the checkpoint is of step 2
    for number in (3, 4):
        second.step(*step(number))
    second.conclude(4, {"final/test_micro_f1": 0.5})
    second.close()
    ((key, told),) = service.told.items()
    assert key.startswith("anit-ds/") and told[0][1]["train.lr"] == config.train.lr
    assert [at for at, _ in told] == [None, 1, 2, 3, 4, 4] and told[-1][1] == {"final/test_micro_f1": 0.5}
    assert not (Path(config.out) / "tensorboard").exists()
    record = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in record] == [1, 2, 3, 4]


def test_a_dev_score_that_a_signal_put_off_is_told_after_the_restart(make_config: MakeConfig, service: type[Service]):
    config = make_config(**{"train.report_to": "wandb", "train.log_every": 1})
    monitor(config).step(*step(1))  # interrupted in the evaluation on dev that belongs to the step
    second = monitor(config, start=1)
    second.scalar(1, "dev/micro_f1", 0.5)
    second.close()
    third = monitor(config, start=1)
    third.scalar(1, "dev/micro_f1", 0.5)
    third.close()
    told = next(iter(service.told.values()))
    assert [at for at, _ in told] == [None, 1, 1] and told[-1][1] == {"dev/micro_f1": 0.5}


def test_a_tracker_that_fails_ends_no_training(
    make_config: MakeConfig, service: type[Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(service, "fails_at", 2)
    shown = monitor(make_config(**{"train.report_to": ["tensorboard", "wandb"], "train.log_every": 1}))
    for number in (1, 2, 3):
        shown.step(*step(number))
    shown.close()
    assert [at for at, _ in next(iter(service.told.values()))] == [None, 1]
    assert "wandb is told nothing more: the service is gone" in caplog.text


def test_a_tracker_that_is_not_installed_is_named_before_any_work(make_config: MakeConfig):
    with pytest.raises(InputError, match=r"train.report_to: comet_ml is not installed; `pip install comet-ml`"):
        train(make_config(**{"train.report_to": ["comet_ml"]}))


def test_on_a_terminal_the_bar_moves_every_step(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    shown = monitor(make_config(**{"train.log_every": 100}))
    for number in (1, 2, 3):
        time.sleep(0.15)
        shown.step(*step(number))
    for number in (1, 2, 3):
        assert f" {number}/6 " in screen.getvalue()
    shown.close()
