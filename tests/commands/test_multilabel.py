"""Texts with several labels: from a table through training to answers, as typed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import yaml

from anit_ds.config import Columns
from anit_ds.data.corpora import load_corpus
from anit_ds.errors import InputError
from anit_ds.experiments.answers import kept_answers
from anit_ds.experiments.confusion import confusions
from anit_ds.tiny import save_tiny

Anit = Callable[..., str]
LABELS = ["toxic", "severe_toxic", "threat"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def comments(rows: int = 40, cell: str = "0") -> None:
    """comments.csv as the toxic-comments data have it: a column of 0 and 1 for each label, the last one never 1."""
    with Path("comments.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text", *LABELS])
        for n in range(rows):
            text = f"Comment {n}: " + "you rat, " * (n % 2) + "I hate it, " * (n % 3 == 0) + "bye"
            writer.writerow([f"x{n}", text, n % 2, int(n % 3 == 0), cell if n == 5 else 0])


def test_columns_of_0_and_1_become_a_run(anit: Anit):
    comments()
    model = save_tiny("model", seed=3)  # to this one every comment is toxic, where to that of seed 0 none is anything
    said = anit("init", ".", "--data", "comments.csv", "--task", "multilabel", "--model", model)
    assert "40 rows of multilabel; text from 'comment_text', label from 'toxic', 'severe_toxic', 'threat'" in said
    assert yaml.safe_load(Path("instructions.yaml").read_text())["labels"] == {
        "toxic": "toxic", "severe_toxic": "severe toxic", "threat": "threat",
    }  # fmt: skip
    short = ["train.max_steps=2", "train.global_batch=16", "train.micro_batch=16", "eval.max_new_tokens=24"]
    anit("train", "comments.yaml", *short)
    rows = [json.loads(line) for line in Path("runs/comments/data/train.jsonl").read_text().splitlines()]
    assert {(tuple(label for (label,) in row["items"]), row["answer"]) for row in rows} == {
        ((), "None"), (("toxic",), "toxic"), (("severe_toxic",), "severe toxic"),
        (("toxic", "severe_toxic"), "toxic; severe toxic"),
    }  # fmt: skip

    said = anit("eval", "runs/comments", "--constrained")
    assert "subset accuracy" in said and "label  " in said and "unparsed answers 0.0%" in said
    kept = {**kept_answers(Path("runs/comments/eval"), []), "transfer_from": None, "dataset": "comments"}
    assert kept["counts"]["comments"] and kept["confusion"] == {} and confusions([kept]) == []

    Path("new.jsonl").write_text('{"text": "you rat"}\n{"text": "bye"}\n')
    ask = ("predict", "runs/comments", "--input", "new.jsonl")
    rows = [json.loads(line) for line in anit(*ask, "--constrained").splitlines()[:2]]
    for row in rows:
        assert row["items"] == [[label] for label in row["labels"]] and len(row["scores"]) == len(row["labels"])
        assert row["labels"] == [label for label in LABELS if label in row["labels"]]
    sure = [json.loads(line) for line in anit(*ask, "--min-score", "1").splitlines()[:2]]
    assert [row["labels"] for row in sure] == [[], []] and [row["labels"] for row in rows] == [["toxic"]] * 2
    some, none = ([json.loads(line) for line in anit(*ask, "--threshold", f"None={p}").splitlines()[:2]]
                  for p in (1, 1e-300))  # fmt: skip
    assert all(row["labels"] for row in some) and [row["labels"] for row in none] == [[], []]
    assert [row["none"] for row in some] == [row["none"] for row in rows]
    assert "--min-score leaves out labels" in anit(*ask, "--threshold", "toxic=0.5", code=2)
    assert "--constrained gives each label a score" in anit(*ask, "--probabilities", code=2)

    anit("export", "runs/comments", "out")
    assert json.loads(Path("out/prompt.json").read_text())["comments"]["task"] == "multilabel"
    assert "| comments | multilabel | 32 | 4 | 4 |" in Path("out/README.md").read_text()


FORMS = {
    "text.csv": ("text,tags\n" + "t,a; b\nt,b\nt,\nt,c;a\n" * 5, {"label": "tags", "separator": ";"}),
    "bars.tsv": ("text\ttags\n" + "t\ta|b\nt\tb\nt\t\nt\tc|a\n" * 5, {"label": "tags", "separator": "|"}),
    "json.csv": (
        "text,tags\n" + 't,"[""a"", ""b""]"\nt,"[""b""]"\nt,[]\nt,"[""c"", ""a""]"\n' * 5,
        {"label": "tags", "separator": None},
    ),
    "lists.jsonl": (
        "".join(json.dumps({"text": "t", "tags": tags}) + "\n" for tags in (["a", "b"], ["b"], [], ["c", "a"])) * 5,
        {"label": "tags", "separator": None},
    ),
    "flags.csv": ("text,a,b,c\n" + "t,1,1,0\nt,0,1,0\nt,0,0,0\nt,1.0,False,true\n" * 5, {"label": ["a", "b", "c"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_labels_is_found_and_holds_the_same_rows(name: str, anit: Anit, tiny_folder: Path):
    content, columns = FORMS[name]
    number = count()
    Path(name).write_text(re.sub('(?m)(^|": ")t(?=[,\t"])', lambda begins: f"{begins[1]}t{next(number)}", content))
    anit("init", "x", "--data", name, "--task", "multilabel", "--model", tiny_folder, "--name", "own")
    written = yaml.safe_load(Path("x/own.yaml").read_text())["data"]["columns"]
    assert written == {"text": "text", **{key: value for key, value in columns.items() if value}}
    corpus = load_corpus("own", name, task="multilabel", own=Columns(**written))
    assert {frozenset(e.items) for split in (corpus.train, corpus.dev, corpus.test) for e in split} == {
        frozenset({("a",), ("b",)}), frozenset({("b",)}), frozenset(), frozenset({("c",), ("a",)}),
    }  # fmt: skip


@pytest.mark.parametrize(
    "content, options, said",
    [
        ("text,p,q\nabc,1,0\nabc,0,1\n", [], "--task multilabel if each column of 0 and 1 is a label"),
        ("text,x\nabc,q\n", ["--task", "multilabel"], "which columns are the labels? --label COLUMN says it"),
        ("text,tags\nabc,q\n", ["--task", "multilabel"], "where there is none of ; | ,? --separator says it"),
        ("text,tags\nabc,a;b|c\n", ["--task", "multilabel"], "where there is ; and |? --separator says it"),
        ("text,tags\nabc,a\n", ["--separator", ";"], "are for --task multilabel"),
        ("text,tags\nabc,a;b\nbcd,a\ncde,b\n" * 9, ["--label", "tags"], "such as 'a;b': --task multilabel; where"),
        ('text,tags\nabc,"[""a""]"\nbcd,"[""b"", ""a""]"\n' * 9, ["--label", "tags"], "--task multilabel"),
    ],
)  # fmt: skip
def test_where_the_labels_are_is_asked_for(content: str, options: list[str], said: str, anit: Anit):
    Path("a.csv").write_text(content)
    assert said in anit("init", "x", "--data", "a.csv", *options, code=2)


def test_a_label_without_words_and_a_cell_that_is_neither_are_named_with_their_place(anit: Anit, tiny_folder: Path):
    comments(cell="maybe")
    ask = ("init", ".", "--data", "comments.csv", "--task", "multilabel", "--model", tiny_folder)
    said = anit(*ask)
    assert "1 rows cannot be read: comments.csv:7: threat: 'maybe' is neither 0 nor 1" in said
    assert "anit train comments.yaml data.on_error=skip" in said
    assert "comments.csv:7: threat: 'maybe' is neither 0 nor 1" in anit("data", "comments.yaml", code=2)
    comments(cell="1")
    file = Path("instructions.yaml")
    file.write_text(file.read_text().replace("  threat: threat\n", ""))
    said = anit("data", "comments.yaml", code=2)
    assert "comments.csv:7: label 'threat' is not under `labels` in the instructions; there are 'toxic'" in said


@pytest.mark.parametrize(
    "record, columns, said",
    [
        ({"text": "t", "y": "a"}, {"label": "y"}, r"a\.jsonl:1: y: 'a' is no list .*data\.columns\.separator"),
        ({"text": "t", "y": ["a", "a"]}, {"label": "y"}, r"a\.jsonl:1: a label stands twice in \['a', 'a'\]"),
        ({"text": "t", "y": "a;;b"}, {"label": "y", "separator": ";"}, r"y: an empty label between the ';' of 'a;;b'"),
        ({"text": "t", "y": ["a"]}, {"label": "y", "separator": ";"}, r"y: \['a'\] is no text with ';' between"),
        ({"text": "t", "y": "[1"}, {"label": "y"}, r"a\.jsonl:1: the cell '\[1' is no JSON"),
        ({"text": "t", "x": 1, "y": -1}, {"label": ("x", "y")}, r"y: -1 is neither 0 nor 1"),
        ({"text": "t", "x": 1}, {"label": ("x", "y")}, r"no column is called 'y'; there are text, x"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_labels(record: dict[str, object], columns: dict[str, object], said: str):
    Path("a.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match=said):
        load_corpus("own", "a.jsonl", task="multilabel", own=Columns(**columns))
