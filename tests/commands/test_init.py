"""`anit init` on data of one's own, and the lines that it prints, as typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

Anit = Callable[..., str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spam(rows: int = 40) -> str:
    lines = [f'"Win, {n}!",1' if n % 3 == 0 else f"Lunch at {n}?,0" for n in range(rows)]
    return "\n".join(["msg,is_spam", *lines]) + "\n"


def test_a_csv_of_mails_becomes_a_run(anit: Anit, tiny_folder: Path):
    Path("mails.csv").write_text(spam())
    said = anit("init", "spam", "--data", "mails.csv", "--model", tiny_folder)
    assert "40 rows of classification; text from 'msg', label from 'is_spam'" in said and "labels: 0 26, 1 14" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("    anit ")]
    assert lines == [["anit", "data", "spam/mails.yaml"], ["anit", "train", "spam/mails.yaml"]]
    assert yaml.safe_load(Path("spam/instructions.yaml").read_text())["labels"] == {"0": "not spam", "1": "spam"}
    short = ["train.epochs=1", "train.global_batch=16", "train.micro_batch=16", "eval.max_new_tokens=4"]
    for _, *line in lines:
        anit(*line, *short)
    anit("eval", "runs/mails", "--noise", "all")
    Path("new.jsonl").write_text('{"text": "Win 7!"}\n')
    row = json.loads(anit("predict", "runs/mails", "--input", "new.jsonl").splitlines()[0])
    assert set(row["probabilities"]) == {"0", "1"}
    Path("new.csv").write_text('when,msg\nnow,"Win 7!"\n')
    assert json.loads(anit("predict", "runs/mails", "--input", "new.csv").splitlines()[0]) == {
        "when": "now", "msg": "Win 7!", **{key: value for key, value in row.items() if key != "text"}
    }  # fmt: skip
    Path("new.csv").write_text("when\nnow\n")
    said = 'new.csv:2: expected an object with a "text", or with "msg" as in training'
    assert said in anit("predict", "runs/mails", "--input", "new.csv", code=2)
    anit("export", "runs/mails", "adapter")
    assert "already there" in anit("init", "spam", "--data", "mails.csv", code=2)


@pytest.mark.parametrize(
    "columns, rows, epochs, batch",
    [("msg,is_spam", 60, 3, 4), ("msg,is_spam", 500, 3, 8), ("msg,is_spam", 2000, 3, 16), ("msg,spans", 60, 6, 4)],
)
def test_few_rows_are_trained_in_small_batches(columns: str, rows: int, epochs: int, batch: int, anit: Anit):
    answers = [str(n % 2) if "is_spam" in columns else '"[[0, 3, ""PER""]]"' for n in range(rows)]
    Path("own.csv").write_text("\n".join([columns, *(f"Ada is {n},{answer}" for n, answer in enumerate(answers))]))
    anit("init", "own", "--data", "own.csv", *([] if "is_spam" in columns else ["--entities", "spans"]))
    train = yaml.safe_load(Path("own/own.yaml").read_text())["train"]
    assert (train["epochs"], train["global_batch"]) == (epochs, batch)


@pytest.mark.parametrize("every", [1, 4])
def test_where_most_answers_are_none_training_says_so(every: int, anit: Anit, tiny_folder: Path):
    rows = [{"text": f"Ada is {n}", "entities": [[0, 3, "PER"]] if n % every == 0 else []} for n in range(60)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    anit("init", "own", "--data", "own.jsonl", "--model", tiny_folder)
    assert yaml.safe_load(Path("own/own.yaml").read_text())["method"] == {"name": "anit", "preset": "ours"}
    anit("train", "own/own.yaml", "train.max_steps=1", "train.epochs=1", "eval.max_new_tokens=4")
    said = re.findall(r"own: (\d+)% of the training answers are None", Path("runs/own/log-rank0.txt").read_text())
    assert [60 < int(share) < 90 for share in said] == ([] if every == 1 else [True])


def test_what_init_writes_trains_in_half_precision_too(anit: Anit, tiny_folder: Path):
    """`model.dtype: auto` is bfloat16 on most GPUs."""
    from anit_ds.configfile import load_config
    from anit_ds.training.batching import Split
    from anit_ds.training.ds_config import deepspeed_config

    Path("mails.csv").write_text(spam())
    anit("init", "spam", "--data", "mails.csv", "--model", tiny_folder)
    config = load_config("spam/mails.yaml")
    made = deepspeed_config(config, split=Split.of(config.train, ranks=2), dtype=torch.bfloat16)
    assert made["bf16"]["enabled"]


def test_entities_with_offsets(anit: Anit, tiny_folder: Path):
    entities = [{"start": 0, "end": 3, "label": "PER"}]
    rows = [{"text": f"Ada met Bo {number}", "entities": entities} for number in range(30)]
    Path("people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "30 rows of ner" in anit(
        "init", ".", "--data", "people.jsonl", "--model", tiny_folder, "--without-opposites"
    )
    assert "opposite" not in Path("instructions.yaml").read_text().split("task:")[1]
    said = anit("data", "people.yaml")
    assert "people (ner): 24 train, 3 dev, 3 test" in said and "Answer: PER: Ada" in said


def test_what_the_file_calls_its_labels(anit: Anit, tiny_folder: Path):
    datasets = pytest.importorskip("datasets")
    coarse, fine = (datasets.ClassLabel(names=names) for names in (["good", "bad"], ["ham", "odd_mail"]))
    features = datasets.Features({"t": datasets.Value("string"), "coarse": coarse, "y": fine})
    rows = [{"t": f"some text {n}", "coarse": 0, "y": n % 2} for n in range(30)]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=features)}).save_to_disk("saved")
    anit("init", "x", "--data", "saved", "--label", "y", "--model", tiny_folder)
    assert yaml.safe_load(Path("x/instructions.yaml").read_text())["labels"] == {"0": "ham", "1": "odd mail"}
    assert "saved (classification): 24 train" in anit("data", "x/saved.yaml")


@pytest.mark.parametrize(
    "labels, words",
    [
        (["a_b", "a b", "c_d"], ["a b", "a_b", "c d"]), (["none", "hate"], ["hate", "none"]),
        (["one\nline", "two"], ["one line", "two"]),
    ],
)  # fmt: skip
def test_words_tell_labels_apart(labels: list[str], words: list[str], anit: Anit):
    rows = [{"text": f"some text {n}", "label": labels[n % len(labels)]} for n in range(60)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    anit("init", "x", "--data", "a.jsonl")
    assert sorted(yaml.safe_load(Path("x/instructions.yaml").read_text())["labels"].values()) == words


def test_zeros_and_ones_with_a_point_are_yes_and_no(anit: Anit):
    Path("a.csv").write_text("msg,is_spam\n" + "".join(f"text {n},{n % 2}.0\n" for n in range(40)))
    anit("init", "x", "--data", "a.csv")
    said = yaml.safe_load(Path("x/instructions.yaml").read_text())["labels"]
    assert said == {"0.0": "not spam", "1.0": "spam"}


@pytest.mark.parametrize(
    "name, content, options, said",
    [
        ("a.csv", "a,b\nlong text here,long text there\n", [], "which column is the text? --text COLUMN"),
        ("a.csv", "text,a,b\nx,1,2\ny,1,2\nz,1,2\n", [], "which column is the label? --label COLUMN says it"),
        ("a.csv", spam(), ["--label", "spam"], "a.csv has no column 'spam'; there are msg, is_spam"),
        ("a.csv", spam(), ["--task", "nre"], "--task: no task is called 'nre'; there are classification, multi"),
        ("a.csv", spam(), ["--name", "sst2"], "sst2 is a data set known by name"),
        ("a.csv", spam(), ["--name", "a b"], "'a b' is no name"),
        ("a.csv", "text,label\n", [], "holds no row with columns"),
        ("a.jsonl", '{"conversations": [{"from": "human"}]}\n', [], "conversations holds whole conversations"),
        ("a.csv", "text,label\n" + "".join(f"t,{n}\n" for n in range(300)), [], "has 300 different labels in 300 rows"),
        ("a.csv", "text,label\n" + "t,Spam\nu,spam\n" * 9, [], "a.csv: labels: 'spam' and 'Spam' are both called"),
        ("a.csv", spam(), ["--name", "instructions"], "instructions.yaml holds the instructions"),
        ("a.jsonl", "{}\n{}\n", [], "holds no row with columns"),
        ("b.csv", None, [], "there is no file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_is_asked_for_and_nothing_is_written(
    name: str, content: str | None, options: list[str], said: str, anit: Anit
):
    if content is not None:
        Path(name).write_text(content)
    assert said in anit("init", "x", "--data", name, *options, code=2)
    assert not Path("x").exists()


def test_two_data_sets_of_one_s_own_in_a_mixture(anit: Anit, tiny_folder: Path):
    for name in ("one", "two"):
        Path(f"{name}.csv").write_text(spam(30))
        anit("init", name, "--data", f"{name}.csv", "--model", tiny_folder)
    own = [yaml.safe_load(Path(f"{name}/{name}.yaml").read_text())["data"] for name in ("one", "two")]
    config = yaml.safe_load(Path("one/one.yaml").read_text())
    config["data"] = {"mix": own, "instructions": "concise"}
    Path("both.yaml").write_text(yaml.safe_dump({**config, "out": "runs/both"}))
    said = anit("data", "both.yaml")
    assert "one (classification): 24 train" in said and "two (classification): 24 train" in said
