"""Tables of one's own, in every file they come in: the same rows from each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import labels_of

from anit_ds.config import Columns
from anit_ds.data.corpora import Cut, load_corpus
from anit_ds.errors import InputError

datasets = pytest.importorskip("datasets")

TABLE = [{"msg": f'Mail {n}, "quoted"\nand more; é', "is_spam": n % 2, "no": f"m{n}"} for n in range(40)]
COLUMNS = Columns(text="msg", label="is_spam", id="no")


def separated(path: Path, delimiter: str, rows: list[dict[str, Any]] = TABLE) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def on_disk(path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(TABLE)}).save_to_disk(path)


def folder_of_parquet(path: Path) -> None:
    path.mkdir()
    datasets.Dataset.from_list(TABLE).to_parquet(path / "train-00000-of-00001.parquet")


def arrow(path: Path) -> None:
    datasets.Dataset.from_list(TABLE).save_to_disk(path.with_name("saved"))
    next(path.with_name("saved").glob("*.arrow")).rename(path)


FILES: dict[str, Callable[[Path], object]] = {
    "mails.csv": lambda path: separated(path, ","),
    "semicolons.csv": lambda path: separated(path, ";"),
    "mails.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in TABLE)),
    "mails.json": lambda path: path.write_text(json.dumps(TABLE, indent=1)),
    "mails.parquet": lambda path: datasets.Dataset.from_list(TABLE).to_parquet(path),
    "mails.arrow": arrow,
    "saved-to-disk": on_disk,
    "parquet": folder_of_parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_holds_the_same_rows(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    corpus = load_corpus("mails", tmp_path / name, task="classification", own=COLUMNS)
    found = {
        example.id: (example.text, example.items)
        for split in (corpus.train, corpus.dev, corpus.test)
        for example in split
    }
    assert found == {f"mails/train/{row['no']}": (row["msg"], ((str(row["is_spam"]),),)) for row in TABLE}
    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (32, 4, 4) and labels_of(corpus) == ("0", "1")


def test_a_tsv_has_no_quotation_marks_and_a_folder_has_splits(tmp_path: Path) -> None:
    for split, n in (("train", 8), ("valid", 3), ("test", 2)):
        (tmp_path / f"{split}.tsv").write_text("title\tbody\ty\n" + 'He said "so\tand\tgood\n' * n)
    corpus = load_corpus("own", tmp_path, own=Columns(text=("title", "body"), label="y"))
    assert [len(split) for split in (corpus.train, corpus.dev, corpus.test)] == [8, 3, 2]
    assert corpus.train[0].text == 'He said "so and' and corpus.train[0].items == (("good",),)


def test_entities_by_their_places(tmp_path: Path) -> None:
    text = "Ada met Bo in Bern"
    objects = [{"start": 14, "end": 18, "label": "LOC"}, {"start": 0, "end": 3, "label": "PER"}]
    said = [objects, [[8, 10, "PER"], [8, 10, "PER"]], []]
    rows = [{"t": f"{text} {number}", "spans": spans} for number in range(4) for spans in said]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    separated(tmp_path / "b.csv", ",", [{**row, "spans": json.dumps(row["spans"])} for row in rows])
    columns = Columns(text="t", entities="spans")
    for file in ("a.jsonl", "b.csv"):
        corpus = load_corpus("own", tmp_path / file, task="ner", own=columns)
        items = {example.items for split in (corpus.train, corpus.dev, corpus.test) for example in split}
        assert items == {(("PER", "Ada"), ("LOC", "Bern")), (("PER", "Bo"),), ()}


def test_entities_lie_in_the_text_of_one_column() -> None:
    with pytest.raises(ValueError, match="entities: their places are in the text of one column"):
        Columns(text=("title", "body"), entities="spans")


def test_labels_of_any_kind(tmp_path: Path) -> None:
    values = (1, 1.0, True, " high ", "010", "null")
    rows = [{"text": f"{value} {number}", "label": value} for number in range(3) for value in values]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus("own", tmp_path / "a.jsonl", own=Columns())
    assert labels_of(corpus) == ("010", "1", "high", "null", "true")


def test_a_mail_of_many_lines_is_one_text(tmp_path: Path) -> None:
    rows = [{"msg": "\n".join([f"mail {n}, line", *map(str, range(500))]), "is_spam": n % 2} for n in range(40)]
    separated(tmp_path / "a.csv", ",", rows)
    corpus = load_corpus("own", tmp_path / "a.csv", task="classification", own=Columns(text="msg", label="is_spam"))
    texts = {example.text for split in (corpus.train, corpus.dev, corpus.test) for example in split}
    assert texts == {row["msg"] for row in rows}
    long = tmp_path / "b.csv"
    long.write_text('msg,is_spam\n"' + "x\n" * 70_000 + '",1\n')
    with pytest.raises(InputError, match=r"b\.csv:2: a cell that begins here has more than 131,072 characters"):
        load_corpus("own", long, task="classification", own=Columns(text="msg", label="is_spam"))


def test_what_pandas_writes(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [{"text": f'He said "{n}", and "ha"', "label": n % 2} for n in range(40)]
    rows += [{"text": f'"{n}"' if n % 2 else f'"{n}" and "more"', "label": n % 2} for n in range(40)]
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv")
    frame.to_csv(tmp_path / "a.tsv", sep="\t")
    for file in ("a.csv", "a.tsv"):
        corpus = load_corpus("own", tmp_path / file, task="classification", own=Columns())
        read = {(e.text, e.items[0][0]) for split in (corpus.train, corpus.dev, corpus.test) for e in split}
        assert read == {(row["text"], str(row["label"])) for row in rows}


def test_fewer_examples_than_asked_for_are_noted(tmp_path: Path) -> None:
    separated(tmp_path / "a.csv", ",")
    read = lambda most: load_corpus("own", tmp_path / "a.csv", own=COLUMNS, cut=Cut(max_train=most))  # noqa: E731
    assert len(read(20).train) == 20 and not any("max_train" in note for note in read(20).notes)
    assert f"train: has {len(read(99).train)} examples, fewer than data.max_train 99" in read(99).notes


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", "msg,is_spam\nhello\n", r"a\.csv:2: 1 cells where the header names 2 columns"),
        ("a.csv", 'msg,is_spam\n"hello,1\nb,0\n', r"a\.csv:2: a quotation mark opens here that is not closed"),
        ("a.csv", "msg,msg\na,b\n", r"a\.csv:1: two columns have one name: msg, msg"),
        ("a.csv", ",\na,b\n", r"a\.csv:1: the first line must name the columns"),
        ("a.csv", "text,label\na,b\n", r"a\.csv:2: no column is called 'msg'; there are text, label"),
        ("a.csv", "msg,is_spam\na,\n", r"a\.csv:2: no label"),
        ("a.jsonl", '{"msg": 3, "is_spam": 1}\n', r"a\.jsonl:1: the text is 3, not text"),
        ("a.jsonl", '{"msg": "a", "is_spam": [1, 2]}\n', r"a\.jsonl:1: .* the task classification needs one label"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read|the train split of .*a\.parquet cannot be read"),
        ("a.xlsx", "", r"a\.xlsx: a table's name ends with \.csv, \.tsv"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_its_place(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        load_corpus("own", tmp_path / name, task="classification", own=Columns(text="msg", label="is_spam"))


@pytest.mark.parametrize(
    "entity", [{"start": 0, "end": 9, "label": "PER"}, [0, 0, "PER"], [1, 2], [0, 1, 7], "PER", {"start": "0"}]
)
def test_an_entity_that_is_none(entity: object, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Ada", "e": [entity]}))
    with pytest.raises(InputError, match=r"a\.jsonl:1: .*entity"):
        load_corpus("own", tmp_path / "a.jsonl", own=Columns(entities="e"))


def test_names_that_are_taken_or_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.columns: sst2 is known by name"):
        load_corpus("sst2", tmp_path, own=COLUMNS)
    with pytest.raises(InputError, match=r"data\.dataset: 'a/b' is no name"):
        load_corpus("a/b", tmp_path, own=COLUMNS)
    with pytest.raises(InputError, match=r"no data set is called 'sst'; did you mean sst2\?"):
        load_corpus("sst", tmp_path)


def test_a_header_that_cannot_be_read_is_never_left_out(tmp_path: Path):
    (tmp_path / "own.csv").write_bytes("Stra\u00dfe,label\nsome text,a\n".encode("latin-1") * 20)
    with pytest.raises(InputError, match=r"own.csv:1: the first line is not UTF-8 .*save the file as UTF-8"):
        load_corpus("own", tmp_path / "own.csv", own=Columns(text="some text", label="a"), on_error="skip")


def test_equal_texts_are_never_carved_apart(tmp_path: Path) -> None:
    rows = [{"text": f"text {number % 60}", "label": "ab"[number % 2]} for number in range(180)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus("own", tmp_path / "a.jsonl", task="classification", own=Columns())
    parts = [{example.text for example in split} for split in (corpus.train, corpus.dev, corpus.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60 and all(parts)
    assert sum(map(len, (corpus.train, corpus.dev, corpus.test))) == 180 and not any("too" in n for n in corpus.notes)


def test_a_folder_of_several_formats_has_all_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, size in (("train", 40), ("train_old", 30), ("values", 20)):
        rows = [{"text": f"{name} {number}", "label": "ab"[number % 2]} for number in range(size)]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
    streamed = load_corpus("own", tmp_path, own=Columns())
    assert sum(map(len, (streamed.train, streamed.dev, streamed.test))) == 40
    for name, size in (("dev", 5), ("test", 6)):
        separated(tmp_path / f"{name}.csv", ",", [{"text": f"{name} {n}", "label": "a"} for n in range(size)])
    corpus = load_corpus("own", tmp_path, own=Columns())
    assert tuple(map(len, (corpus.train, corpus.dev, corpus.test))) == (40, 5, 6)


def test_a_label_of_minus_one_is_a_label(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for split, size in (("train", 40), ("test", 6)):
        rows = [{"text": f"{split} {number}", "label": number % 3 - 1} for number in range(size)]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"{split}.parquet"))
    corpus = load_corpus("own", tmp_path, own=Columns())
    assert len(corpus.test) == 6 and labels_of(corpus) == ("-1", "0", "1")


def test_examples_have_ids_or_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "a", "key": f"k{number}" if number < 9 else ""} for number in range(12)]
    separated(tmp_path / "a.csv", ",", rows)
    with pytest.raises(InputError, match="give all examples of a split an id, or none of them; example 10 has none"):
        load_corpus("own", tmp_path / "a.csv", own=Columns(id="key"))
    separated(tmp_path / "a.csv", ",", [{**row, "key": ""} for row in rows])
    assert load_corpus("own", tmp_path / "a.csv", own=Columns(id="key")).train[0].id.startswith("own/train/")
