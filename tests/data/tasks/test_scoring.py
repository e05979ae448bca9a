"""Scores against other packages: seqeval for entities, scikit-learn for labels, set arithmetic for triplets."""

from __future__ import annotations

import random

import pytest
from corruptions import corrupt_items, corrupt_tags, entities, numbered
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from anit_ds.data.tasks import Parsed, score

TYPES = ["person", "location", "group"]
SENTENCES = 10_000


def test_hits_misses_and_malformed_pieces_by_hand() -> None:
    gold = [[("A", "x"), ("A", "x"), ("B", "y")], [], []]
    predicted = [Parsed((("A", "x"), ("B", "z"))), Parsed((), malformed=1), Parsed(())]
    result = score(gold, predicted)
    # 1 hit; 3 predicted, one of them malformed; 3 gold.
    assert (result.precision, result.recall, result.micro_f1) == (1 / 3, 1 / 3, 1 / 3)
    # With None counted the last answer is a hit and the second gold set is one item more.
    assert result.micro_f1_with_none == 2 * 2 / (4 + 5)
    assert result.parse_failures == 1 / 3 and result.subset_accuracy == 1 / 3
    assert result.per_type["A"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}


def test_none_alone_is_never_a_hit() -> None:
    result = score([[], []], [Parsed(()), Parsed(())])
    assert (result.micro_f1, result.micro_f1_with_none, result.n) == (0.0, 1.0, 2)


def test_numbers_must_match() -> None:
    with pytest.raises(ValueError, match="1 gold sets and 0 predictions"):
        score([[]], [])


def test_labels_agree_with_scikit_learn() -> None:
    rng = random.Random(1)
    gold = [rng.choice(TYPES) for _ in range(SENTENCES)]
    said = [g if rng.random() < 0.7 else rng.choice([*TYPES, "no label"]) for g in gold]
    predicted = [Parsed((), malformed=1) if s == "no label" else Parsed(((s,),)) for s in said]
    result = score([[(g,)] for g in gold], predicted)
    assert result.micro_f1 == pytest.approx(f1_score(gold, said, average="micro"), abs=1e-12)
    assert result.micro_f1 == pytest.approx(sum(g == s for g, s in zip(gold, said, strict=True)) / SENTENCES)
    precision, recall, f1, support = precision_recall_fscore_support(gold, said, labels=TYPES, zero_division=0.0)
    for i, label in enumerate(TYPES):
        row = result.per_type[label]
        assert list(row.values()) == pytest.approx([precision[i], recall[i], f1[i], support[i]], abs=1e-12)


def test_sets_of_labels_agree_with_scikit_learn_on_an_indicator_matrix() -> None:
    rng = random.Random(4)
    sets = [[label for label in TYPES if rng.random() < 0.3] for _ in range(2000)]
    said = [[label for label in TYPES if (label in labels) ^ (rng.random() < 0.1)] for labels in sets]
    result = score([[(x,) for x in labels] for labels in sets], [Parsed(tuple((x,) for x in some)) for some in said])
    binarizer = MultiLabelBinarizer(classes=TYPES)
    gold, predicted = binarizer.fit_transform(sets), binarizer.transform(said)
    for average, ours in (("micro", result.micro_f1), ("macro", result.macro_f1)):
        assert ours == pytest.approx(f1_score(gold, predicted, average=average), abs=1e-12)
    assert result.subset_accuracy == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    for label, *expected in zip(TYPES, *precision_recall_fscore_support(gold, predicted), strict=True):
        assert list(result.per_type[label].values()) == pytest.approx(expected, abs=1e-12)


def _tagged_sentence(rng: random.Random) -> tuple[list[str], list[str]]:
    """Words, all different (so that a span's text is unique in the sentence), and IOB2 tags."""
    words = [f"w{i}" for i in range(rng.randrange(1, 15))]
    tags: list[str] = []
    while len(tags) < len(words):
        if rng.random() < 0.5:
            tags.append("O")
            continue
        kind, length = rng.choice(TYPES), rng.randrange(1, 4)
        tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
    return words, tags[: len(words)]


def test_entities_agree_with_seqeval() -> None:
    rng = random.Random(2)
    sentences = [_tagged_sentence(rng) for _ in range(SENTENCES)]
    corrupted = [corrupt_tags(tags, TYPES, rng) for _, tags in sentences]
    gold = [entities(words, tags) for words, tags in sentences]
    predicted = [Parsed(tuple(entities(w, tags))) for (w, _), tags in zip(sentences, corrupted, strict=True)]
    reference = seqeval_f1([tags for _, tags in sentences], corrupted, mode="strict", scheme=IOB2)
    result = score(gold, predicted)
    assert result.micro_f1 == pytest.approx(reference, abs=1e-12)
    assert 0.3 < result.micro_f1 < 0.9


def test_triplets_agree_with_sets_of_numbered_items() -> None:
    rng = random.Random(3)
    spans = ["screen", "battery life", "price"]
    gold = [
        [(rng.choice(TYPES), rng.choice(spans), rng.choice(spans)) for _ in range(rng.randrange(5))]
        for _ in range(SENTENCES)
    ]
    said = [corrupt_items(items, TYPES, rng) for items in gold]
    hits = sum(len(numbered(g) & numbered(s)) for g, s in zip(gold, said, strict=True))
    precision, recall = hits / sum(map(len, said)), hits / sum(map(len, gold))
    result = score(gold, [Parsed(tuple(items)) for items in said])
    assert (result.precision, result.recall) == pytest.approx((precision, recall), abs=1e-12)
    assert result.micro_f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
