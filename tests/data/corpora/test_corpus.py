"""From a name and a path to splits: found, carved, thinned, and explained."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from corpora import labels_of

from anit_ds.data.corpora import Cut, load_corpus
from anit_ds.data.instructions import load_instructions
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        ("wnut17", (3394, 1009, 1287)),
        ("sst2", (6920, 872, 1821)),
        ("14lap", (906, 219, 328)),
        ("agnews", (30014, 0, 0)),
        ("webnlg", (5019, 500, 0)),
        ("14res", (1266, 310, 0)),
    ],
)
def test_counts_of_real_data(dataset: str, counts: tuple[int, int, int], shared_data: Path) -> None:
    """A split without a file is carved from train, so train is counted together with what was carved from it."""
    corpus = load_corpus(dataset, shared_data / dataset)
    found = {"train": len(corpus.train), "dev": len(corpus.dev), "test": len(corpus.test)}
    for split in ("dev", "test"):
        if split not in corpus.sources:
            found["train"] += found[split]
            found[split] = 0
    assert tuple(found.values()) == counts


def test_scierc_documents_are_counted_and_carved_whole(shared_data: Path) -> None:
    corpus = load_corpus("scierc", shared_data / "scierc")
    train, dev, test = ({e.id.rpartition(".")[0] for e in split} for split in (corpus.train, corpus.dev, corpus.test))
    assert (len(train) + len(test), len(dev)) == (350, 50)
    assert not train & test


def _jsonl(path: Path, rows: int, labels: int = 2) -> Path:
    lines = [json.dumps({"text": f"text {i}", "label": f"l{i % labels}"}) for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_one_file_is_carved_with_notes_and_by_the_seed(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "all.jsonl", 200)
    corpus = load_corpus("jsonl", path, seed=1)
    ids = [{e.id for e in split} for split in (corpus.train, corpus.dev, corpus.test)]
    assert [len(s) for s in ids] == [162, 18, 20]
    assert len(set.union(*ids)) == 200
    assert any(note.startswith("dev: seeded 10%") for note in corpus.notes)
    assert load_corpus("jsonl", path, seed=1).train == corpus.train
    assert load_corpus("jsonl", path, seed=2).train != corpus.train


def test_glue_without_test_labels_uses_its_validation_split(tmp_path: Path) -> None:
    rows = "".join(f"sentence {i}\t{i % 2}\n" for i in range(50))
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + rows)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nvalidation\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tunlabelled\n")
    corpus = load_corpus("sst2", tmp_path)
    assert [e.text for e in corpus.test] == ["validation"]
    assert (len(corpus.train), len(corpus.dev)) == (45, 5)
    assert "validation split is the test" in " ".join(corpus.notes)


def test_a_fraction_is_stratified_and_nested(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "all.jsonl", 1000, labels=4)
    small, large = (load_corpus("jsonl", path, cut=Cut(f), task="classification") for f in (0.05, 0.2))
    whole = Counter(e.items for e in load_corpus("jsonl", path, task="classification").train)
    assert Counter(e.items for e in small.train) == {items: round(0.05 * n) for items, n in whole.items()}
    assert {e.id for e in small.train} < {e.id for e in large.train}
    assert small.dev == large.dev


@pytest.mark.parametrize("name", ["dev", "valid", "validation", "val", "devel", "development", "testa", "Valid"])
def test_a_dev_split_has_many_names(name: str, tmp_path: Path) -> None:
    for split, words in (("train", 9), (name, 4), ("test", 5)):
        (tmp_path / f"{split}.tsv").write_text("".join(f"{split}{i}\tO\n\n" for i in range(words)))
    corpus = load_corpus("conll2003", tmp_path)
    assert [len(split) for split in (corpus.train, corpus.dev, corpus.test)] == [9, 4, 5]
    assert corpus.dev[0].text == f"{name}0"


def test_only_the_english_part_of_a_tree_of_languages(tmp_path: Path) -> None:
    line = "x/y   0   0   {}   NNP   *   -   -   -   -   (GPE)   -\n\n"
    for language in ("english", "arabic", "chinese"):
        folder = tmp_path / "train" / "data" / language / "annotations"
        folder.mkdir(parents=True)
        (folder / "y.v4_gold_conll").write_text("".join(line.format(f"{language}{i}") for i in range(20)))
    corpus = load_corpus("ontonotes5", tmp_path)
    assert {e.text[:7] for split in (corpus.train, corpus.dev, corpus.test) for e in split} == {"english"}
    assert "only english/ is read, not arabic, chinese" in corpus.notes


def test_webnlg_in_both_of_its_forms(tmp_path: Path) -> None:
    for relation in ("division", "partsType", "buildingType", "literaryGenre", "country"):
        row = {"text": "a Bern", "triple_list": [["Bern", relation, "a"]]}
        (tmp_path / f"{relation}.json").write_text(json.dumps([row] * 5))
        corpus = load_corpus("webnlg", tmp_path / f"{relation}.json")
        assert set(labels_of(corpus)) <= set(load_instructions("webnlg").labels)


def test_carved_splits_have_every_label_of_classification(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    labels = ["common"] * 160 + ["rare"] * 40 + ["once"]
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": of}) + "\n" for i, of in enumerate(labels)))
    corpus = load_corpus("jsonl", path, task="classification")
    test = Counter(e.items[0][0] for e in corpus.test)
    assert (test["common"], test["rare"], test["once"]) == (16, 4, 0)
    assert Counter(e.items[0][0] for e in corpus.dev) == {"common": 14, "rare": 4}
    assert any(note.startswith("test: seeded 10% of train of each label, 20 examples") for note in corpus.notes)


def test_texts_that_are_trained_on_too_are_counted(tmp_path: Path) -> None:
    for split, texts in (("train", "abc"), ("dev", "ax"), ("test", "abbz")):
        rows = [json.dumps({"id": f"{n}", "text": text, "label": "y"}) for n, text in enumerate(texts)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    notes = load_corpus("jsonl", tmp_path, task="classification").notes
    assert {note for note in notes if "stand in train" in note} == {
        "test: 3 of 4 texts stand in train too", "dev: 1 of 2 texts stand in train too",
    }  # fmt: skip


def test_notes_say_what_is_used(tmp_path: Path) -> None:
    whole = load_corpus("jsonl", _jsonl(tmp_path / "all.jsonl", 1000))
    assert "test: seeded 10% of train, 100 examples" in whole.notes and not any("few" in n for n in whole.notes)
    few = load_corpus("jsonl", tmp_path / "all.jsonl", cut=Cut(max_test=7, max_dev=49))
    assert "test: seeded 10% of train, 100 examples, of which 7 are used" in few.notes
    assert "dev: 49 examples are few to choose an adapter by; have at least 50" in few.notes


def test_skip_counts_items_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    good, bad = '{"text": "a %d", "items": [["person", "a"]]}\n', '{"text": "a", "label": "x"}\n'
    path.write_text("".join(good % number + bad for number in range(20)))
    assert load_corpus("jsonl", path, task="ner", on_error="skip").skipped == 20


def test_at_most_so_many(tmp_path: Path) -> None:
    corpus = load_corpus("jsonl", _jsonl(tmp_path / "all.jsonl", 200), cut=Cut(max_train=7, max_dev=3, max_test=2))
    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (7, 3, 2)


def test_skipped_lines_are_counted_and_noted(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "all.jsonl", 100)
    path.write_text(path.read_text() + '{"text": "no label"}\n')
    corpus = load_corpus("jsonl", path, on_error="skip")
    assert corpus.skipped == 1
    assert "all.jsonl:101" in " ".join(corpus.notes)
    with pytest.raises(InputError, match=r'all\.jsonl:101: no "label"'):
        load_corpus("jsonl", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("14lab", "."), "did you mean 14lap"),
        (("14lap", None), "needs the folder"),
        (("14lap", "no/such folder"), "there is no file or folder no/such folder"),
        (("14lap", "EMPTY"), "no training file of 14lap; expected train_triplets.txt"),
    ],
)
def test_what_is_wrong_with_name_or_path(arguments, message: str, tmp_path: Path) -> None:
    dataset, path = arguments
    with pytest.raises(InputError, match=message):
        load_corpus(dataset, tmp_path if path == "EMPTY" else path)


def test_items_of_another_shape_and_repeated_ids(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text('{"text": "a", "items": [["person", "a"]]}\n' * 30)
    with pytest.raises(InputError, match="the task relation needs items"):
        load_corpus("jsonl", path, task="relation")
    path.write_text('{"text": "a", "label": "x", "id": "same"}\n' * 2)
    with pytest.raises(InputError, match="the id 'same' occurs twice"):
        load_corpus("jsonl", path)


def test_a_large_split_is_kept_in_a_file_that_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _jsonl(tmp_path / "all.jsonl", 500)
    small = load_corpus("jsonl", path, cut=Cut(0.9))
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("anit_ds.data.corpora.spool.IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    large = load_corpus("jsonl", path, cut=Cut(0.9))
    assert isinstance(large.train, RecordFile)
    for split in ("train", "dev", "test"):
        assert list(getattr(large, split)) == list(getattr(small, split))
    del large
    assert list(spool.iterdir()) == []
