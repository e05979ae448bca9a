"""Real gold sets, corrupted, rendered and parsed: 10,000 sentences against other packages' scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import pytest
from corruptions import corrupt_items, corrupt_tags, entities, numbered
from matrix import rows
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.scheme import IOB2
from sklearn.metrics import f1_score

from anit_ds.data.corpora import load_corpus
from anit_ds.data.examples import Item
from anit_ds.data.instructions import load_instructions
from anit_ds.data.tasks import TASKS, Parsed, score

SENTENCES = 10_000


def said(task: str, items: Sequence[Item], labels: dict[str, str]) -> Parsed:
    """The items as a model's answer: written out, and read back."""
    return TASKS[task].parse(TASKS[task].render(items, labels), labels)


def gold_of(dataset: str, folder: Path) -> list[Sequence[Item]]:
    corpus = load_corpus(dataset, folder / dataset)
    return [example.items for split in (corpus.train, corpus.dev, corpus.test) for example in split]


def sentences(file: Path) -> list[tuple[list[str], list[str]]]:
    """Words and IOB2 tags, read without the project's reader."""
    blocks = file.read_text(encoding="utf-8").strip().split("\n\n")
    rows = [[line.split("\t") for line in block.splitlines() if "\t" in line] for block in blocks]
    return [([row[0] for row in block], [row[-1].strip() for row in block]) for block in rows if block]


def unambiguous(words: list[str], *several: list[str]) -> bool:
    """No span's text occurs twice in the sentence, for any of the taggings: then (type, text) says which span it is."""
    text = f" {' '.join(words)} "
    return all(text.count(f" {span} ") == 1 for tags in several for _, span in entities(words, tags))


def test_entities_of_wnut17_agree_with_seqeval(shared_data: Path):
    labels = load_instructions("wnut17").labels
    kinds, rng = sorted(labels), random.Random(1)
    files = sorted((shared_data / "wnut17").glob("*"))
    known = [s for file in files if file.is_file() for s in sentences(file)]
    gold, wrong, answers = [], [], []
    for words, tags in cycle(known):
        corrupted = corrupt_tags(tags, kinds, rng)
        if unambiguous(words, tags, corrupted):
            gold.append((words, tags))
            wrong.append(corrupted)
            answers.append(said("ner", entities(words, corrupted), labels))
        if len(gold) == SENTENCES:
            break
    ours = score([entities(*g) for g in gold], answers)
    theirs = seqeval_f1([tags for _, tags in gold], wrong, mode="strict", scheme=IOB2)
    print(f"wnut17, {len(known)} sentences used {SENTENCES} times: micro-F1 {ours.micro_f1:.6f}, seqeval {theirs:.6f}")
    assert ours.micro_f1 == pytest.approx(theirs, abs=1e-12) and 0.2 < ours.micro_f1 < 0.9


def test_labels_of_agnews_agree_with_scikit_learn(shared_data: Path):
    labels = load_instructions("agnews").labels
    rng = random.Random(2)
    gold = [items[0][0] for items in islice(gold_of("agnews", shared_data), SENTENCES)]
    wrong = [g if rng.random() < 0.8 else rng.choice(sorted(labels)) for g in gold]
    ours = score([[(g,)] for g in gold], [said("classification", [(w,)], labels) for w in wrong])
    theirs = f1_score(gold, wrong, average="micro")
    print(f"agnews: micro-F1 {ours.micro_f1:.6f}, scikit-learn {theirs:.6f}")
    assert len(gold) == SENTENCES and ours.micro_f1 == pytest.approx(theirs, abs=1e-12)


SETS = [("14lap", "absa", "aste-laptop"), ("webnlg", "relation", "webnlg"), ("scierc", "relation", "scierc")]


@pytest.mark.parametrize("dataset, task, name", rows(SETS, quick=[one for one in SETS if one[0] != "webnlg"]))
def test_triplets_agree_with_set_arithmetic(dataset: str, task: str, name: str, shared_data: Path):
    labels = load_instructions(name).labels
    kinds, rng = sorted(labels), random.Random(3)
    gold = list(islice(cycle(gold_of(dataset, shared_data)), SENTENCES))
    hits = predicted = expected = 0
    answers = []
    for items in gold:
        wrong = corrupt_items(items, kinds, rng)
        hits += len(numbered(items) & numbered(wrong))
        predicted, expected = predicted + len(wrong), expected + len(items)
        answers.append(said(task, wrong, labels))
    theirs = 2 * hits / (predicted + expected)
    ours = score(gold, answers)
    print(f"{dataset}: micro-F1 {ours.micro_f1:.6f}, set arithmetic {theirs:.6f}")
    assert ours.micro_f1 == pytest.approx(theirs, abs=1e-12) and ours.parse_failures == 0 and 0.2 < theirs < 0.95
