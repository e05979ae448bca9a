"""What tests share: the development data, a tiny random model on disk, and a small run of it to configure."""

from __future__ import annotations

import os

# Before torch is imported anywhere: two spinning threads a worker would burn four times the CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import gc
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from nrm import FULL_NRM

from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.configfile import validate

# How long one example takes says nothing on a machine that other work shares.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=2000, help="cases of each test in tests/fuzz")


@pytest.fixture(scope="session")
def fuzz_cases(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-cases"))


def pytest_collection_finish() -> None:
    """What the tests have imported by now stays: no garbage collection looks through it again, a second each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


INSTRUCTIONS = """
task: classification
question: "Which?"
format: label
labels: {positive: positive, negative: negative}
concise: [Say good or bad., "Praise or blame?", "Is the writer pleased?"]
opposite: {concise: [Count the words of the text., Say the reverse of the sentiment.]}
"""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Original files of public data sets beside the checkout; tests that need them skip without them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development data sets (../shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama and its byte tokenizer, as a checkpoint folder."""
    from anit_ds.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def review_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 training, 6 dev and 6 test sentences of unequal length, as JSON lines, and their instructions."""
    folder, rng = tmp_path_factory.mktemp("reviews"), random.Random(0)
    for split, size in (("train", 21), ("dev", 6), ("test", 6)):
        rows = []
        for number in range(size):
            label = rng.choice(["positive", "negative"])
            text = f"{split} {number} " + "very " * rng.randrange(4) + ("good" if label == "positive" else "bad")
            rows.append(json.dumps({"text": text, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "instructions.yaml").write_text(INSTRUCTIONS)
    return folder


@pytest.fixture(scope="session")
def broken_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has NaN for the character ~."""
    import torch

    from anit_ds.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "broken"
    model, tokenizer = tiny_model(tie_word_embeddings=False), tiny_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def broken_text(review_folder: Path, tmp_path: Path) -> Path:
    """The reviews with a ~ in one of 21 training texts and in one of 6 dev texts."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for file in review_folder.iterdir():
        lines = file.read_text().split("\n")
        if file.stem in ("train", "dev"):
            lines[3] = lines[3].replace('{"text": "', '{"text": "~ ')
        (folder / file.name).write_text("\n".join(lines))
    return folder


@pytest.fixture
def make_config(tiny_folder: Path, review_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """`make_config(**{"train.lr": 1e-3})`: two epochs of three steps of 8, 8 and 5 samples, in float32, dropout 0."""

    def make(name: str = "run", **changes: Any) -> Config:
        raw: dict[str, Any] = {
            "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
            "data": {
                "dataset": "jsonl", "path": str(review_folder), "instructions": "concise",
                "instructions_file": str(review_folder / "instructions.yaml"),
            },
            "noise": {"kind": "replacement"},
            "method": {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute"},
            "lora": {"r": 4, "dropout": 0.0},
            "train": {
                "epochs": 2, "global_batch": 8, "micro_batch": 8, "lr": 1e-3, "checkpoint_every": 2, "log_every": 2,
            },
            "eval": {"every": None, "max_new_tokens": 4},
            "out": str(tmp_path / name),
        }  # fmt: skip
        for path, value in changes.items():
            section, _, key = path.partition(".")
            if key:
                raw.setdefault(section, {})[key] = value
            else:
                raw[section] = dict(value) if isinstance(value, dict) else value  # the caller's stays its own
        raw["method"].setdefault("schedule", "three_pass")  # what the other schedules are compared with
        return validate(raw, source="the test")

    return make


@pytest.fixture
def anit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`anit` in this process; what it said. An exit code other than `code` fails the test."""

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["anit", *map(str, arguments)])
        ended = 0
        try:
            main()
        except SystemExit as exit:
            ended = exit.code
        said = capsys.readouterr()
        assert ended == code, said.err
        return said.out + said.err

    return call
