"""Data sets in the hub's columns, from Parquet files written here, through `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora import labels_of

from anit_ds.data.corpora import load_corpus
from anit_ds.errors import InputError

datasets = pytest.importorskip("datasets")


def write(folder: Path, split: str, rows: list[dict[str, Any]], features: Any = None) -> None:
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def splits(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], features: Any = None) -> str:
    write(folder, "train", train, features)
    write(folder, "validation", train[:1], features)
    write(folder, "test", test, features)
    return str(folder)


def test_sst2_with_its_unlabelled_test_split(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "idx": datasets.Value("int32"),
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    rows = [{"idx": i, "sentence": f"sentence {i} ", "label": i % 2} for i in range(40)]
    path = splits(tmp_path, rows, [{"idx": 0, "sentence": "hidden", "label": -1}], features)
    corpus = load_corpus("sst2", path)
    assert [e.text for e in corpus.test] == ["sentence 0"]
    assert labels_of(corpus) == ("0", "1")
    assert len(corpus.train) + len(corpus.dev) == 40


def test_a_set_without_a_test_split_has_one_carved_as_in_a_folder(tmp_path: Path) -> None:
    rows = [{"sentence": f"sentence {i}", "label": i % 2} for i in range(40)]
    write(tmp_path, "train", rows, None)
    write(tmp_path, "validation", rows[:3], None)
    corpus = load_corpus("sst2", str(tmp_path))
    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (36, 3, 4)


def test_ag_news_counts_its_classes_from_zero(tmp_path: Path) -> None:
    path = splits(tmp_path, [{"text": "world news", "label": 0}], [{"text": "tech news", "label": 3}])
    corpus = load_corpus("agnews", path)
    assert corpus.train[0].items == (("1",),)
    assert corpus.test[0].items == (("4",),)


@pytest.mark.parametrize("named", [True, False], ids=["names-in-the-file", "published-order"])
def test_conll2003_tag_numbers(named: bool, tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    tag = datasets.ClassLabel(names=names) if named else datasets.Value("int64")
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(tag)})
    row = {"tokens": ["Peter", "Blackburn", "in", "Rome"], "ner_tags": [1, 2, 0, 5]}
    corpus = load_corpus("conll2003", splits(tmp_path, [row], [row], features))
    assert corpus.test[0].items == (("PER", "Peter Blackburn"), ("LOC", "Rome"))


def test_ontonotes_in_both_of_its_hub_forms(tmp_path: Path) -> None:
    flat = {"tokens": ["Xinhua", "today"], "tags": [11, 2]}
    nested = {"document_id": "d", "sentences": [{"words": ["Xinhua", "today"], "named_entities": [7, 15]}]}
    for name, row in (("flat", flat), ("nested", nested)):
        corpus = load_corpus("ontonotes5", splits(tmp_path / name, [row], [row]))
        assert corpus.test[0].items == (("ORG", "Xinhua"), ("DATE", "today")), name


def test_triples_triplets_and_our_own_columns(tmp_path: Path) -> None:
    triple = {"text": "Paris in France", "triple_list": [["France", "/location/country/capital", "Paris"]]}
    corpus = load_corpus("nyt24", splits(tmp_path / "nyt", [triple], [triple]))
    assert corpus.test[0].items == (("/location/country/capital", "France", "Paris"),)
    triplets = [
        {"text": "Great screen, bad fan", "aspect_term": a, "opinion_term": o, "sentiment": s}
        for a, o, s in (("screen", "Great", "positive"), ("fan", "bad", "negative"))
    ]
    corpus = load_corpus("14lap", splits(tmp_path / "aste", triplets, triplets))
    assert len(corpus.test) == 1
    assert corpus.test[0].items == (("POS", "screen", "Great"), ("NEG", "fan", "bad"))
    own = {"text": "a", "items": [["person", "a"]]}
    assert load_corpus("jsonl", splits(tmp_path / "own", [own], [own])).test[0].items == (("person", "a"),)


WRONG = {
    "conll2003": [
        {"tokens": None, "ner_tags": [1]},
        {"tokens": ["a"], "ner_tags": None},
        {"tokens": ["a"], "ner_tags": [-1]},
        {"tokens": ["a"], "ner_tags": [99]},
        {"tokens": ["a", None], "ner_tags": [1, 1]},
    ],
    "scierc": [{"sentences": [["a", ""]], "relations": [[]]}],
    "nyt24": [{"text": None, "triple_list": []}, {"text": "a", "triple_list": None}],
    "14lap": [{"text": "a", "aspect_term": None, "opinion_term": "a", "sentiment": "POS"}],
    "sst2": [{"sentence": None, "label": 1}, {"sentence": "a", "label": None}],
    "agnews": [{"text": "a", "label": None}, {"text": "a", "label": 4}],
    "jsonl": [{"text": "a", "items": None}, {"text": "a", "items": [[None]]}],
}
SOUND = {
    "conll2003": {"tokens": ["a"], "ner_tags": [1]},
    "scierc": {"sentences": [["a", "b"]], "relations": [[]]},
    "nyt24": {"text": "a", "triple_list": [["a", "b", "c"]]},
    "14lap": {"text": "b", "aspect_term": "a", "opinion_term": "a", "sentiment": "POS"},
    "sst2": {"sentence": "a", "label": 1},
    "agnews": {"text": "a", "label": 0},
    "jsonl": {"text": "a", "items": [["person", "a"]]},
}


@pytest.mark.parametrize(("dataset", "wrong"), [(name, row) for name, rows in WRONG.items() for row in rows])
def test_a_row_of_wrong_types_is_named_or_skipped(dataset: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "train", [wrong, SOUND[dataset]])
    write(tmp_path, "validation", [SOUND[dataset]])
    write(tmp_path, "test", [SOUND[dataset]])
    with pytest.raises(InputError, match="train:1: "):
        load_corpus(dataset, tmp_path)
    assert load_corpus(dataset, tmp_path, on_error="skip").skipped == 1


def test_a_document_without_names_is_left_out(tmp_path: Path) -> None:
    def row(*tags: int) -> dict[str, Any]:
        return {"document_id": "d", "sentences": [{"words": ["Xinhua"], "named_entities": [tag]} for tag in tags]}

    corpus = load_corpus("ontonotes5", splits(tmp_path, [row(7, 0), row(0, 0)], [row(7)]))
    assert [e.items for e in corpus.train] == [(("ORG", "Xinhua"),), ()]
    assert corpus.left_out == 1 and "1 documents without a single name left out" in corpus.notes


def test_columns_of_another_set_are_refused(tmp_path: Path) -> None:
    path = splits(tmp_path, [{"question": "?", "answer": "!"}], [{"question": "?", "answer": "!"}])
    with pytest.raises(InputError, match="has the columns question, answer, which are not those of scierc"):
        load_corpus("scierc", path)


def test_a_set_that_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(InputError, match="there is no file or folder no-such-owner/no-such-set, and the hub has no"):
        load_corpus("sst2", "no-such-owner/no-such-set")


def test_parquet_files_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=f"cannot read the data set in {tmp_path}"):
        load_corpus("sst2", tmp_path)
