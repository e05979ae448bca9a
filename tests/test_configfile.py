"""Configurations as users write them: labels and paths as they stand, odd values in one sentence, no bombs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from anit_ds.configfile import load_config
from anit_ds.data.instructions import load_instructions
from anit_ds.errors import InputError
from anit_ds.experiments.cells import load_compare_config
from anit_ds.yamlfile import parse_yaml

BASE = """
model: {name_or_path: tiny}
data: {dataset: jsonl, path: reviews}
method: {name: anit}
out: run
"""


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    started = time.process_time()  # of this process: other work on the machine is no slowness of ours
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    assert time.process_time() - started < 5
    said = str(error.value)
    assert all(len(line) < 700 for line in said.split("\n"))
    return said


def aliases_of_aliases() -> str:
    lines = ["deepspeed:", "  a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  {c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("train: {lr: 1e-3}\ntrain: {epochs: 2}", "c.yaml:7: the key 'train' is repeated; it stands on line 6 already"),
        ("noise: {base_url: 'http://me:secret@host/v1'}", "c.yaml:6: noise.base_url: a name or password in it"),
        ("train: {lr: 1e-3, lr: 1e-4}", "c.yaml:6: the key 'lr' is repeated"),
        ("train: {lr: .inf}", "c.yaml:6: '.inf' is no finite number"),
        ("train: {lr: -.INF}", "no finite number"),
        ("train: {lr: .nan}", "no finite number"),
        ("train: {lr: inf}", "c.yaml:6: train.lr: input should be a finite number"),
        ("deepspeed: {x: 1e999}", "no finite number"),
        ("deepspeed: &a {x: *a}", "an alias inside of what it stands for"),
        (aliases_of_aliases(), "more than 100,000 values once its aliases are written out"),
        ("deepspeed: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("deepspeed: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("train: !!timestamp 1", "the tag 'tag:yaml.org,2002:timestamp' says nothing here"),
        ("train: !!python/object:os.system {}", "says nothing here"),
        ("[a, b]: 1", "c.yaml:6: a key is text"),
        ('train: {x: "\\ud83d"}', "is no text"),
        ("train: {seed: " + "9" * 5000 + "}", "is no number that can be read"),
        ("train: {", "not valid YAML"),
        ("lora: {init_from: ${HOME}/x}", "c.yaml:6: not valid YAML (expected ',' or '}', but got '{'; inside of { } a"),
        ("lora: {init_from: '~/${NOT_SET_ANYWHERE}/x'}", "the environment variable 'NOT_SET_ANYWHERE' is not set"),
        ("lora: {init_from: ~no-such-user-here/x}", "the home folder of nobody"),
        ("method2: " + "x" * 10_000, "unknown key"),
    ],
)
def test_what_a_file_may_not_say(more: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, f"{BASE}{more}\n")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=.inf", "command line: train.epochs: '.inf' is no finite number"),
        ("train.adam_betas=[5,-3]", "command line: train.adam_betas.0: input should be less than 1, not 5"),
        ("train.global_batch=" + "9" * 30, "less than or equal to 1000000"),
        ("method.name={a: 1}", "no method is called {'a': 1}"),
        ("method.preset=[1]", "method.preset: input should be 'paper'"),
        ('out="a\\0b"', "is no text"),
        ("out=", "command line: out: input should be a valid string, not None"),
        ("out='  '", "command line: out: an empty path"),
        ("data.path=" + "x" * 300, "command line: data.path: longer than a path can be"),
        ("train..lr=1", "'train..lr': a field is written section.key"),
        ("train=3", "command line: train: input should be a valid dictionary"),
        ("x=!!timestamp 1", "says nothing here"),
        ("x={", "command line: x: not valid YAML"),
    ],
)
def test_what_the_command_line_may_not_say(override: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, BASE, override)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (BASE.encode() + b"# caf\xe9\n", "c.yaml:6: not UTF-8 text (byte 6 of the line)"),
        (BASE.encode("utf-16"), "c.yaml: UTF-16 text; save it as UTF-8"),
        (b"", "expected sections such as model: and data:, found NoneType"),
        (b"- 1", "found list"),
        (b"x" * (9 << 20), "too large for the configuration (9 MiB); is it a data file?"),
    ],
    ids=["latin-1", "utf-16", "empty", "list", "large"],
)
def test_bytes_that_are_no_configuration(raw: bytes, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, raw)


def test_a_byte_order_mark_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_config(tmp_path / "c.yaml").out == "run"


@pytest.mark.parametrize("written", ["no", "010", "1e5", "12:30", "2024-13-45", "1_000", "0x1f", "on"])
def test_text_is_what_is_written(written: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE.replace("out: run", f"out: {written}"))
    config = load_config(tmp_path / "c.yaml", [f"model.revision={written}", f"lora.x='{written}'"])
    assert config.lora.model_extra == {"x": written}
    assert (config.out, config.model.revision) == (written, written)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_numbers_are_those_of_json_and_sections_may_be_merged() -> None:
    text = "base: &b {lr: 2e8, n: 010}\nrun: {<<: *b, n: 3}\nalso: {<<: [{a: 1}, {a: 2, b: 2}]}"
    assert parse_yaml(text, "x").value == {
        "base": {"lr": 2e8, "n": 10}, "run": {"lr": 2e8, "n": 3}, "also": {"a": 1, "b": 2},
    }  # fmt: skip


def test_paths_are_expanded_once_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "c.yaml").write_text(
        "model: {name_or_path: ~/models/tiny}\ndata: {mix: [{dataset: sst2, path: '${DATA}/sst2'}]}\n"
        "lora: {init_from: $DATA/run}\ndeepspeed: ~/ds.json\nout: ${HOME}/runs\n"
    )
    config = load_config(tmp_path / "c.yaml", ["distortion.cache=~/cache"])
    assert config.model.name_or_path == "/home/ada/models/tiny"
    assert config.data.mix[0].path == "/data/sst2"
    assert (config.lora.init_from, config.deepspeed) == ("/data/run", "/home/ada/ds.json")
    assert (config.out, config.distortion.cache) == ("/home/ada/runs", "/home/ada/cache")
    monkeypatch.delenv("DATA")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


LABELS = """
task: classification
question: 12:30
format: on
labels: {no: yes, off: 010, 1.0: 1.0, null: nothing, "12:30": half, ~: tilde}
concise: [no, Say it.]
options_shown: 3
"""


def test_labels_are_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(LABELS)
    own = load_instructions(tmp_path / "own.yaml")
    assert own.labels == {
        "no": "yes", "off": "010", "1.0": "1.0", "null": "nothing", "12:30": "half", "~": "tilde",
    }  # fmt: skip
    assert (own.question, own.format, own.concise, own.options_shown) == ("12:30", "on", ["no", "Say it."], 3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ('{0: zero, "0": nought}', r"own\.yaml:5: the key '0' is repeated"),
        ("{a: }", r"own\.yaml:5: labels\.a: input should be a valid string, not None"),
        ('{a: "\\ud83d"}', r"own\.yaml:5: .* is no text"),
    ],
)
def test_labels_that_are_none(labels: str, said: str, tmp_path: Path) -> None:
    text = LABELS.replace(LABELS.split("\n")[4], f"labels: {labels}")
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        load_instructions(tmp_path / "own.yaml")


GRID = {
    "title": "t",
    "base": {"model": {"name_or_path": "tiny"}},
    "grid": {"methods": ["sft"], "datasets": [{"dataset": "sst2", "path": "x"}]},
    "out": "c",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": {"data": [1]}}, "base.data: a section"),
        ({"base": {"model": None}}, "model: missing"),
        ({"base": "gone.yaml"}, "gone.yaml: cannot read the configuration that base names"),
        ({"base": "${NOT_SET_ANYWHERE}.yaml"}, "'NOT_SET_ANYWHERE' is not set"),
        ({"grid": {**GRID["grid"], "seeds": [-1]}}, "grid.seeds.0: input should be greater than or equal to 0"),
        ({"grid": {**GRID["grid"], "seeds": list(range(20_000))}}, "span 20,000 cells; 10,000 are the most"),
        ({"grid": {**GRID["grid"], "methods": [{"name": "anit", "tune": {k: [*range(99)] for k in "abc"}}]}},
         "970,299 combinations"),
        ({"grid": {**GRID["grid"], "methods": [{"name": ["x"]}]}}, "name: input should be a valid string"),
        ({"grid": {**GRID["grid"], "methods": [{"name": "anit", "preset": {"a": 1}}]}}, "method.preset"),
    ],
)  # fmt: skip
def test_what_a_comparison_may_not_say(changes: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    with pytest.raises(InputError) as error:
        load_compare_config(path)
    assert said in str(error.value)
