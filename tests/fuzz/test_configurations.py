"""Configurations, instructions, comparisons, DeepSpeed's JSON, overrides and command lines with odd things in them.

They are read, or refused with exit code 2 and a sentence.

    pytest tests/fuzz --fuzz-cases 20000 -s      # as many cases as one likes; the outcomes are printed
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from odd import Odd, within

from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.configfile import annotated_yaml, load_config
from anit_ds.data.instructions import load_instructions
from anit_ds.errors import InputError
from anit_ds.experiments.cells import load_compare_config

RUN: dict[str, Any] = {
    "model": {"name_or_path": "tiny", "dtype": "float32", "revision": None},
    "data": {"dataset": "jsonl", "path": "reviews", "instructions": "concise", "max_length": 64},
    "noise": {"kind": "shuffle", "omega": 0.3},
    "distortion": {"kind": "rbe", "cache": None},
    "method": {"name": "anit", "preset": "paper", "eps": 1.0, "lambda": 0.5},
    "lora": {"r": 4, "targets": ["q_proj"], "use_dora": True},
    "train": {"epochs": 2, "lr": 1e-3, "adam_betas": [0.9, 0.99], "seed": 3},
    "eval": {"every": None, "noises": ["shuffle"]},
    "deepspeed": {"zero_optimization": {"stage": 2, "reduce_bucket_size": 200000000}},
    "out": "run",
}
MIXED = {**RUN, "data": {"mix": [{"dataset": "sst2", "path": "a", "weight": 2}, {"dataset": "14lap", "path": "b"}]}}
OWN = {
    "task": "ner", "question": "Which?", "format": "a list", "labels": {"PER": "person", "LOC": "place"},
    "options_shown": 2, "concise": ["Find it.", "Find them."], "opposite": {"concise": ["Leave it."]},
}  # fmt: skip
GRID = {
    "title": "t", "base": {"model": {"name_or_path": "tiny"}, "train": {"epochs": 1}}, "out": "c", "show": ["methods"],
    "grid": {
        "methods": ["sft", {"name": "anit", "tune": {"eps": [0.1, 1]}, "set": {"train.epochs": 2}}],
        "noises": ["shuffle"], "omegas": [0.2], "seeds": [1, 2],
        "datasets": [{"dataset": "sst2", "path": "a"}, {"dataset": "14lap", "path": "b", "set": {"train.lr": 1e-3}}],
    },
    "transfers": [{"source": "sst2", "target": "14lap"}],
}  # fmt: skip
DEEPSPEED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0, "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": 1000},
    "data_types": {"grad_accum_dtype": "fp32"}, "steps_per_print": 10, "wall_clock_breakdown": False,
    "activation_checkpointing": {"partition_activations": False}, "communication_data_type": "fp32",
}  # fmt: skip
FIELDS = [
    f"{name}.{inner}" if hasattr(field.annotation, "model_fields") else name
    for name, field in Config.model_fields.items()
    for inner in getattr(field.annotation, "model_fields", {"": None})
]

Outcome = str


def _file(odd: Odd, content: dict[str, Any], text: str | None = None) -> bytes:
    """A YAML file with this content that something happened to."""
    rng = odd.rng
    kind = rng.randrange(4)
    if kind == 0:
        return odd.damaged((text or yaml.safe_dump(content, sort_keys=False)).encode())
    changed = odd.changed(content)
    if kind == 1:
        return json.dumps(changed).encode()
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _override(odd: Odd) -> str:
    rng = odd.rng
    field = rng.choice(FIELDS) if rng.random() < 0.85 else f"{odd.text()}{rng.choice('.=')}{odd.text()}"
    return f"{field}={odd.text() if rng.random() < 0.5 else json.dumps(odd.value())}"


def _overrides(odd: Odd) -> list[str]:
    return [_override(odd) for _ in range(odd.rng.choice([0, 1, 1, 2]))]


def _run(odd: Odd, folder: Path) -> None:
    path = folder / "run.yaml"
    kind = odd.rng.randrange(3)
    sound = json.dumps(odd.rng.choice([RUN, MIXED])).encode()
    path.write_bytes(sound if kind == 0 else _file(odd, RUN if kind == 1 else MIXED, annotated_yaml()))
    config = load_config(path, _overrides(odd))
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def _instructions(odd: Odd, folder: Path) -> None:
    (folder / "own.yaml").write_bytes(_file(odd, OWN))
    read = load_instructions(folder / "own.yaml")
    assert all(isinstance(part, str) for label in read.labels.items() for part in label) and read.options


def _comparison(odd: Odd, folder: Path) -> None:
    (folder / "grid.yaml").write_bytes(_file(odd, GRID))
    load_compare_config(folder / "grid.yaml")


def _loop(name: str, kind: Callable[[Odd, Path], None], cases: int, folder: Path) -> Counter[Outcome]:
    outcomes: Counter[Outcome] = Counter()
    for seed in range(cases):
        try:
            with within(5):
                kind(Odd(seed), folder)
            outcomes["read"] += 1
        except InputError as error:
            assert all(len(line) < 700 for line in str(error).split("\n")), f"{name} {seed}"
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{name}, case {seed}") from error
    return outcomes


@pytest.mark.parametrize(
    ("kind", "share"), [(_run, 2), (_instructions, 4), (_comparison, 8)], ids=["runs", "instructions", "comparisons"]
)
def test_files(
    kind: Callable[[Odd, Path], None], share: int, fuzz_cases: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = _loop(kind.__name__, kind, fuzz_cases // share, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > fuzz_cases / share / 50, outcomes
    with capsys.disabled():
        print(f"\n{kind.__name__.strip('_')}: {dict(outcomes)}")


def test_deepspeed_json(fuzz_cases: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_config) -> None:
    pytest.importorskip("deepspeed")
    import torch

    from anit_ds.training.batching import Split
    from anit_ds.training.ds_config import deepspeed_config

    config = make_config(deepspeed=str(tmp_path / "ds.json"))

    def read(odd: Odd, folder: Path) -> None:
        content = json.dumps(odd.changed(odd.changed(DEEPSPEED))).encode()
        (folder / "ds.json").write_bytes(odd.damaged(content) if odd.rng.random() < 0.3 else content)
        deepspeed_config(config, split=Split.of(config.train, ranks=1), dtype=torch.float32)

    outcomes = _loop("DeepSpeed", read, fuzz_cases // 8, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > fuzz_cases / 400, outcomes
    with capsys.disabled():
        print(f"\nDeepSpeed's JSON: {dict(outcomes)}")


def test_command_lines(
    fuzz_cases: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`anit config` resolves as every command does."""
    codes: Counter[Any] = Counter()
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    monkeypatch.chdir(tmp_path)
    for seed in range(fuzz_cases // 8):
        odd = Odd(seed)
        file = "run.yaml" if odd.rng.random() < 0.8 else odd.text()
        arguments = [file, *_overrides(odd), *(["--get", odd.text()] if odd.rng.random() < 0.2 else [])]
        arguments = [
            a.encode("utf-8", "replace").decode().replace("\0", "?") for a in arguments
        ]  # what a shell can pass
        monkeypatch.setattr(sys, "argv", ["anit", "config", *arguments])
        code: Any = 0
        try:
            with within(5):
                main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            raise AssertionError(f"command line {seed}: {arguments}") from error
        said = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in said.err, f"command line {seed}: {arguments}"
        assert code == 0 or (said.err.strip() and len(said.err) < 8000), f"command line {seed}: {arguments}"
        codes[f"exit {code}"] += 1
    assert min(codes["exit 0"], codes["exit 2"]) > fuzz_cases / 400, codes
    with capsys.disabled():
        print(f"\ncommand lines: {dict(codes)}")
