"""`train`, from configuration to run folder: what is written, what resumes, and what must not change the result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from forked import Program
from matrix import rows
from peft.utils import save_and_load
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.evaluation.finished import FinishedRun
from anit_ds.sealed import read_sealed
from anit_ds.training import train
from anit_ds.training.scores import Scores

TAGS = {
    "loss/clean", "loss/adversarial", "nrm/delta0_norm", "nrm/delta1_norm", "nrm/grad_norm", "nrm/clipped_share",
    "nrm/cosine", "nrm/delta_to_embedding", "nrm/nonfinite", "data/beta", "lr", "grad_norm", "tokens_per_second",
    "step_seconds", "memory", "dev/micro_f1",
}  # fmt: skip
MakeConfig = Callable[..., Config]
Trained = Callable[[Config], Config]


def adapter(config: Config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")


def largest_difference(a: Config, b: Config) -> float:
    """Between the weights of two runs that both moved lora_B, which starts at 0."""
    one, two = adapter(a), adapter(b)
    assert one.keys() == two.keys()
    for weights in (one, two):
        assert max(weights[k].abs().max().item() for k in weights if "lora_B" in k) > 1e-3
    return max((one[k] - two[k]).abs().max().item() for k in one)


def copied(run: Config, to: Config) -> Config:
    """A run's folder for a test to do with as it likes."""
    shutil.copytree(run.out, to.out)
    return to


def metrics(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises_and_its_loss_falls(make_config: MakeConfig):
    config = make_config(**{"eval.before": True, "eval.every": 1.0, "train.lr": 1e-2, "lora.r": 16})
    summary = train(config)
    out = Path(config.out)
    assert summary is not None and read_sealed(out / "summary.json") == summary
    assert summary["passes"] == 3 and summary["steps"] == 6 and set(summary["before"]) == {"micro_f1"}
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert events.Tags()["tensors"] == ["config/text_summary"]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    for name in ("config.yaml", "log-rank0.txt", "data/manifest.json", "eval/test.json", "eval/predictions-test.jsonl"):
        assert (out / name).stat().st_size > 0, name
    losses = {line["step"]: line["loss/clean"] for line in metrics(config) if "loss/clean" in line}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert sum(losses[step] for step in (4, 5, 6)) < sum(losses[step] for step in (1, 2, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"train.micro_batch": 1, "method.passes": "separate"},
        {"train.micro_batch": 3},
        {"train.micro_batch": 4, "train.activation_checkpointing": True},
        {"train.micro_batch": 2, "method.schedule": "pipelined", "eval.batch_size": 1},
        {"train.padding_free": True},
    ],
    ids=str,
)
def test_how_it_is_computed_does_not_change_the_result(make_config: MakeConfig, trained: Trained, change: dict):
    other = make_config(**change)
    train(other)
    assert largest_difference(trained(make_config()), other) <= 1e-5


def test_a_warm_up_is_a_share_of_the_steps_of_the_run(make_config: MakeConfig, trained: Trained):
    """Half of six steps train as noisy_sft does; then the attack begins, in either schedule."""
    sft = trained(make_config(method={"name": "noisy_sft"}))
    warm, pipelined = (
        make_config(name, **{"method.warmup": 0.5, "method.schedule": name, "train.micro_batch": 2})
        for name in ("three_pass", "pipelined")
    )
    for config in (warm, pipelined):
        train(config)
    plain, begun = ([line for line in metrics(config) if "loss/clean" in line] for config in (sft, warm))
    assert ["loss/adversarial" in line for line in begun] == [False] * 3 + [True] * 3
    for step in range(4):  # the fourth step's clean loss is that of the weights after the third
        assert begun[step]["loss/clean"] == pytest.approx(plain[step]["loss/clean"], abs=1e-6)
    assert largest_difference(warm, pipelined) <= 1e-5 < largest_difference(warm, sft)


def test_lambda_zero_trains_like_noisy_sft(make_config: MakeConfig, trained: Trained):
    nothing = make_config(**{"method.lambda": 0.0, "method.passes": "separate"})
    train(nothing)
    assert largest_difference(trained(make_config(method={"name": "noisy_sft"})), nothing) == 0.0


def test_without_noise_noisy_sft_is_sft(make_config: MakeConfig):
    sft = make_config("sft", method={"name": "sft"})
    quiet = make_config("quiet", method={"name": "noisy_sft"}, **{"noise.phi": 0.0})
    train(sft)
    train(quiet)
    assert largest_difference(sft, quiet) == 0.0


def interrupt_after(config: Config, lines: int) -> threading.Thread:
    """SIGUSR1 to this process once that many steps are on record, as a scheduler sends before its time limit."""

    def wait_and_signal() -> None:
        file = Path(config.out) / "metrics.jsonl"
        while not file.exists() or len(file.read_text().splitlines()) < lines:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=wait_and_signal, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("optimizer", rows(["adamw", "sgd"], quick=["adamw"]))
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_config: MakeConfig, optimizer: str):
    lr = {"adamw": 1e-3, "sgd": 0.3}[optimizer]
    changes = {
        "lora.dropout": 0.2, "train.epochs": 4, "train.log_every": 1, "train.optimizer": optimizer, "train.lr": lr,
    }  # fmt: skip
    straight, stopped = make_config("straight", **changes), make_config("stopped", **changes)
    train(straight)
    interrupt_after(stopped, 3)
    assert train(stopped) is None
    assert (Path(stopped.out) / "requeue").read_text().startswith("SIGUSR1 at step ")
    assert train(stopped) is not None
    assert not (Path(stopped.out) / "requeue").exists()
    assert largest_difference(straight, stopped) == 0.0
    steps = [line["step"] for line in metrics(stopped) if "loss/clean" in line]
    assert steps == list(range(1, 13))
    events = EventAccumulator(str(Path(stopped.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/clean")] == steps


def test_a_signal_that_comes_while_the_process_starts_is_not_lost(make_config: MakeConfig, tmp_path: Path):
    config = make_config()
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    program = Program("anit", "train", file, output=tmp_path / "said")
    deadline = time.monotonic() + 60
    while not _listens_to(program.pid, signal.SIGUSR1) and time.monotonic() < deadline:
        time.sleep(0.005)
    program.send_signal(signal.SIGUSR1)
    assert program.wait() == 0, program.said()
    assert (Path(config.out) / "requeue").read_text().startswith("SIGUSR1 at step 1")
    assert not (Path(config.out) / "summary.json").exists()


def _listens_to(pid: int, which: signal.Signals) -> bool:
    """Whether the process has a handler of its own for the signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (which - 1) & 1)


def test_a_damaged_checkpoint_is_passed_over(make_config: MakeConfig, trained: Trained):
    config = copied(trained(make_config()), make_config())
    out = Path(config.out)
    expected = adapter(config)
    newest = out / "checkpoints" / "step-000006" / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    (out / "summary.json").unlink()
    train(config)
    assert "step-000006 is damaged" in (out / "log-rank0.txt").read_text()
    again = adapter(config)
    assert all(torch.equal(expected[k], again[k]) for k in expected)


def test_another_configuration_in_the_folder_is_refused(make_config: MakeConfig, trained: Trained):
    copied(trained(make_config()), make_config())
    with pytest.raises(InputError, match=r"another configuration \(train.lr: 0.001 there, 0.002 here\)"):
        train(make_config(**{"train.lr": 2e-3}))


def test_a_finished_run_needs_what_it_began_from_no_more(make_config: MakeConfig, trained: Trained):
    first = copied(trained(make_config()), make_config("first"))
    second = make_config("second", lora={"init_from": first.out}, **{"train.max_steps": 1, "eval.test": False})
    summary = train(second)
    shutil.rmtree(first.out)
    assert train(second) == summary
    with pytest.raises(InputError, match="no adapter here"):
        train(second, fresh=True)


def test_what_is_trained_beside_lora_comes_back(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    """Whole layers; and where the best weights are read the hub is not asked for a base."""
    beside = {"lora": {"r": 4, "dropout": 0.0, "modules_to_save": ["norm"]}}
    config = make_config(**beside, **{"method": {"name": "sft"}, "train.lr": 1e-2})
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", Mock(side_effect=AssertionError))
    summary = train(config)
    assert summary is not None
    (scored,) = FinishedRun(config.out).evaluate("test")
    assert scored.evaluation is not None and scored.evaluation.report["nll"] == summary["after"]["nll"]


@pytest.mark.parametrize(
    "json, message",
    [
        ({"train_micro_batch_size_per_gpu": 3}, "train_micro_batch_size_per_gpu is 3, but the run's YAML says 8"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is decided by the run's YAML"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true, but model.dtype is float32"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast computes in another dtype"),
        ({"gradient_clipping": 0.3}, "gradient_clipping is 0.3, but the run's YAML says 1.0"),
    ],
)
def test_json_and_yaml_may_not_contradict_each_other(make_config: MakeConfig, json: dict, message: str):
    with pytest.raises(InputError, match=message):
        train(make_config(deepspeed={"zero_optimization": {"stage": 1}, **json}))


def test_the_seconds_of_training_leave_the_test_split_out(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    spent, clock, test = [0.0], time.perf_counter, Scores.test

    def slow(*arguments: Any) -> Any:
        spent[0] += 1000.0
        return test(*arguments)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + spent[0])
    monkeypatch.setattr(Scores, "test", slow)
    summary = train(make_config(**{"train.max_steps": 1}))
    assert summary is not None and summary["after"] and summary["train_seconds"] < 900
