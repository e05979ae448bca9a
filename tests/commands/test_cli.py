"""The command `anit` as a user meets it: help without torch, and bad input as one sentence with exit code 2."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import pytest
import yaml
from safetensors import SafetensorError

import anit_ds
from anit_ds.commands import entry
from anit_ds.commands.cli import main
from anit_ds.configfile import annotated_yaml, load_config, set_field

INSTRUCTIONS = {
    "task": "classification", "question": "Which?", "format": "one label",
    "labels": {"a": "alpha", "b": "beta"}, "detailed": ["Say which one it is of the two that there are."],
}  # fmt: skip


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """`write_config(**{"noise.omega": 1.7})`: a valid configuration on disk but for the changes."""
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "instructions.yaml").write_text(yaml.safe_dump(INSTRUCTIONS))

    def write(**changes: object) -> Path:
        raw: dict[str, Any] = {
            "model": {"name_or_path": str(tmp_path / "no-model"), "dtype": "float32"},
            "data": {"dataset": "jsonl", "path": str(tmp_path),
                     "instructions_file": str(tmp_path / "instructions.yaml")},
            "noise": {"kind": "replacement"},
            "out": str(tmp_path / "run"),
        }  # fmt: skip
        for path, value in changes.items():
            set_field(raw, path, value)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        return file

    return write


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run `anit ARGUMENTS`, which must exit with 2 and one sentence; returns it."""
    monkeypatch.setattr(sys, "argv", ["anit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    said = capsys.readouterr().err
    assert exit.value.code == 2 and "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    return said.strip()


def line_of(file: Path, text: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"train.epoch": 3}, "train.epoch: unknown key; did you mean epochs?"),
        ({"train.lr": "fast"}, "train.lr: input should be a valid number"),
        ({"noise.omega": 1.7}, "noise.omega: input should be less than or equal to 1, not 1.7"),
        ({"noise.kind": "shufle"}, "noise.kind: input should be 'none', 'truncation', 'shuffle'"),
        ({"method": {"name": "anitt"}}, "no method is called 'anitt'"),
        ({"method": {"name": "fgsm", "alpha": 3.0}}, "fgsm does not use 'alpha'; it reads attack_none, eps, eps_unit"),
        ({"method": {"step": "sign", "alpha": 0.05}}, "changes what the preset's alpha means, so give alpha and eps_"),
        ({"method": {"eps_unit": "element"}}, "changes what the preset's alpha means, so give alpha too"),
        ({"modle": {}}, "modle: unknown key; did you mean model?"),
        ({"train.learning_rate": 1e-4}, "train.learning_rate: unknown key; it is called train.lr here"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(
    change: dict, said: str, write_config: Callable[..., Path], capsys, monkeypatch
):
    file = write_config(**change)
    message = refusal(capsys, monkeypatch, "data", file)
    field = next(iter(change)).split(".")[-1]
    assert said in message and f"{file}:{line_of(file, field + ':')}: " in message


def test_a_wrong_override_is_named(write_config, capsys, monkeypatch):
    message = refusal(capsys, monkeypatch, "data", write_config(), "noise.omega=1.7")
    assert "command line: noise.omega" in message
    assert "written key=value" in refusal(capsys, monkeypatch, "data", write_config(), "omega")
    message = refusal(capsys, monkeypatch, "data", write_config(), "nosie.omega=0.3")
    assert "command line: nosie: unknown key; did you mean noise?" in message
    message = refusal(capsys, monkeypatch, "data", write_config(), "lora.lora_alpha=32")
    assert "with the command line: lora: lora_alpha: it is called lora.alpha here" in message


def test_a_full_disk_is_a_sentence(capsys):
    def ended(error: Exception) -> str:
        command = click.Command("full", callback=Mock(side_effect=error))
        with pytest.raises(SystemExit) as exit:
            entry.run(command, [])
        assert exit.value.code == 1
        return capsys.readouterr().err

    full = os.strerror(errno.ENOSPC)
    assert ended(OSError(errno.ENOSPC, full, "/mnt/out")).startswith(f"anit: /mnt/out: [Errno 28] {full}")
    assert f"I/O error: {full}" in ended(SafetensorError(f"Error while serializing: I/O error: {full} (os error 28)"))
    with pytest.raises(OSError, match="Permission"):
        entry.run(click.Command("other", callback=Mock(side_effect=OSError("Permission"))), [])


def test_a_missing_data_file_is_named(write_config, capsys, monkeypatch, tmp_path):
    message = refusal(capsys, monkeypatch, "data", write_config(**{"data.path": str(tmp_path / "nowhere")}))
    assert str(tmp_path / "nowhere") in message


def test_a_start_that_failed_can_be_corrected(write_config, capsys, monkeypatch, tmp_path):
    file = write_config()
    refusal(capsys, monkeypatch, "data", file, f"data.path={tmp_path / 'nowhere'}")
    monkeypatch.setattr(sys, "argv", ["anit", "data", str(file)])
    main()
    assert "20 train" in capsys.readouterr().out


def test_a_line_without_a_label_is_named(write_config, capsys, monkeypatch, tmp_path):
    file = write_config()
    with open(tmp_path / "train.jsonl", "a") as train:
        train.write('{"text": "no label here"}\n')
    message = refusal(capsys, monkeypatch, "data", file)
    assert f"{tmp_path / 'train.jsonl'}:21" in message and "label" in message


def test_an_unwritable_output_folder_is_named(write_config, capsys, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("a file, not a folder")
    message = refusal(capsys, monkeypatch, "data", write_config(out=str(tmp_path / "occupied" / "run")))
    assert "out: cannot write into" in message


def test_a_folder_of_another_configuration_is_refused(write_config, capsys, monkeypatch):
    file = write_config()
    monkeypatch.setattr(sys, "argv", ["anit", "data", str(file)])
    main()
    capsys.readouterr()
    message = refusal(capsys, monkeypatch, "data", file, "noise.omega=0.4")
    assert "another configuration (noise.omega: 0.2 there, 0.4 here)" in message
    monkeypatch.setattr(sys, "argv", ["anit", "data", str(file), "noise.omega=0.4", "--fresh"])
    main()
    assert "omega 0.4" in capsys.readouterr().out


def test_data_shows_what_will_be_trained_on(write_config, capsys, monkeypatch, tmp_path, tiny_folder):
    rows = [{"text": f"Ada {i} lives in Bern", "items": [["person", f"Ada {i}"], ["place", "Basel"]]} for i in range(9)]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"text": "x", "items": []}])
    )
    for split in ("dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(rows[0]) + "\n")
    words = {"person": "person", "place": "place"}
    (tmp_path / "instructions.yaml").write_text(yaml.safe_dump({**INSTRUCTIONS, "task": "ner", "labels": words}))
    file = write_config(**{"model.name_or_path": str(tiny_folder), "data.max_length": 150, "noise.kind": "none"})
    monkeypatch.setattr(sys, "argv", ["anit", "data", str(file)])
    main()
    said = capsys.readouterr().out
    prompt = (
        "    Instruction: Say which one it is of the two that there are.\n    Question: Which?\n    Format: one label\n"
        "    Option: person, place\n    Text: Ada 0 lives in Bern\n    Answer: person: Ada 0; place: Basel\n"
    )
    assert prompt in said
    assert "labels in train: person 9 (47.4%), place 9 (47.4%), None 1 (5.3%)" in said
    assert "9 of 18 spans of train do not occur in their text, such as 'Basel' in jsonl/train/0" in said
    longest = len("\n".join(line[4:] for line in prompt.split("\n"))) - 1 + 1  # a byte each, no line end, EOS
    assert (
        f"tokens of train (prompt and answer): median {longest}, 95% up to {longest}, longest {longest}; 9 of 10"
        in said
    )
    assert "note: dev: 1 examples are few to choose an adapter by; have at least 50" in said


def test_a_model_that_is_not_there_is_named(write_config, capsys, monkeypatch, tmp_path):
    message = refusal(capsys, monkeypatch, "train", write_config())
    assert f"model.name_or_path: there is no folder {tmp_path / 'no-model'}; give" in message


def test_a_run_that_is_not_there_is_named(capsys, monkeypatch, tmp_path):
    assert "no run here" in refusal(capsys, monkeypatch, "eval", tmp_path / "nothing")


def test_an_unknown_lora_field_is_named(write_config, capsys, monkeypatch, tiny_folder):
    file = write_config(**{"lora.rankk": 3, "model.name_or_path": str(tiny_folder)})
    assert "lora.rankk: peft" in refusal(capsys, monkeypatch, "train", file)


def test_help_and_data_do_without_torch(write_config):
    program = "import sys; from anit_ds.commands.cli import cli\n"
    program += "try: cli(sys.argv[1:], standalone_mode=True)\nexcept SystemExit as e: code = e.code\n"
    program += "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules); sys.exit(code)"
    for arguments in (["--help"], ["train", "--help"], ["data", str(write_config())]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env={**os.environ}
        )
        assert done.returncode == 0, done.stderr


def test_the_printed_configuration_is_a_valid_one(tmp_path: Path):
    file = tmp_path / "my.yaml"
    file.write_text(annotated_yaml())
    assert load_config(file) == load_config(file, ["method.preset=ours"])
    assert file.read_text().count("#") > 60
    # What the preset fills in is left to it: another one, or another method, is one override away.
    ours, paper = load_config(file), load_config(file, ["method.preset=paper"])
    assert (ours.method.ball, ours.noise.kind) == ("none", "none")
    assert (paper.method.ball, paper.noise.kind) == ("frobenius", "replacement")
    assert load_config(file, ["noise.kind=shuffle"]).noise.kind == "shuffle"
    assert load_config(file, ["method.name=sft"]).method.name == "sft"


@pytest.mark.parametrize(
    "field, value", [("out", "OUT/run"), ("train.lr", "0.0003"), ("train.adam_betas", "- 0.9\n- 0.999")]
)
def test_a_script_is_told_one_field(field: str, value: str, write_config, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["anit", "config", str(write_config()), "train.lr=3e-4", "--get", field])
    main()
    assert capsys.readouterr().out == value.replace("OUT", str(tmp_path)) + "\n"


def test_a_field_that_is_not_there_is_named(write_config, capsys, monkeypatch):
    file = write_config()
    assert "train.lrr: unknown key; did you mean lr?" in refusal(
        capsys, monkeypatch, "config", file, "--get", "train.lrr"
    )
    assert "'out.x': out is a value" in refusal(capsys, monkeypatch, "config", file, "--get", "out.x")


def test_a_configuration_comes_to_one_that_reads_the_same(write_config, capsys, monkeypatch, tmp_path):
    file = write_config()
    monkeypatch.setattr(sys, "argv", ["anit", "config", str(file), "noise.omega=0.4"])
    main()
    (tmp_path / "resolved.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "resolved.yaml") == load_config(file, ["noise.omega=0.4"])


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "anit_ds", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"anit, version {anit_ds.__version__}\n"
