"""The same data sets in the hub's columns (streams.py opens them), each row turned into ours by an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from anit_ds.data.corpora.agnews import CLASSES
from anit_ds.data.corpora.conll import entity_row, iob_spans, with_names
from anit_ds.data.corpora.datasets import NAMES, DatasetInfo
from anit_ds.data.corpora.jsonl import label_text, object_row
from anit_ds.data.corpora.reading import Broken, Faults, Row, read_rows
from anit_ds.data.corpora.scierc import DocumentParser
from anit_ds.data.corpora.streams import load, sound
from anit_ds.data.corpora.tag_names import CONLL2012_NAMES, TAG_NAMES
from anit_ds.data.corpora.triples import triple_row
from anit_ds.data.examples import Item
from anit_ds.errors import InputError, shown

Fields = Mapping[str, Any]
TagNames = Sequence[str]


@dataclass(frozen=True)
class Adapter:
    """Turns the hub's rows into ours.

    `parse` makes our rows of one record and raises Broken saying what is wrong with it, `records` says what a record is
    (by default a row), and a record's rows that hold no name at all are left out where `names_layer`.
    """

    parse: Callable[[Any], Row | list[Row]]
    records: Callable[[Iterator[Fields]], Iterator[Any]] = iter
    names_layer: bool = False


def hub_splits(
    dataset: str, info: DatasetInfo, path: str, task: str | None
) -> dict[str, Callable[[Faults], Iterator[Row]] | None]:
    """For each split that is there, a function that streams its rows, for a task; None for one of a set known by name
    whose labels are -1 (GLUE's test).

    Raises InputError when the set cannot be loaded, has no train split, or has columns that this data set's adapter
    does not know.
    """
    loaded = load(path)
    splits: dict[str, Callable[[Faults], Iterator[Row]] | None] = {}
    for split, names in NAMES.items():
        stream = next((loaded[name] for name in names if name in loaded), None)
        if stream is not None:
            own = info.row and Adapter(info.row(task))
            unlabelled = own is None and _is_unlabelled(sound(stream.take(1), path, split))
            splits[split] = None if unlabelled else _reader(dataset, own, path, split, stream)
    if splits.get("train") is None:
        raise InputError(f"data.path: {path} has no train split with labels, only {', '.join(loaded)}")
    return splits


def _is_unlabelled(rows: Iterator[Fields]) -> bool:
    return next(rows, {}).get("label") == -1


def _reader(dataset: str, own: Adapter | None, path: str, split: str, stream: Any) -> Callable[[Faults], Iterator[Row]]:
    first = next(sound(stream.take(1), path, split), None)
    if first is None:
        raise InputError(f"data.path: the {split} split of {path} is empty")
    adapter = own or _adapter(dataset, set(first), _tag_names(stream, dataset))
    if adapter is None:
        raise InputError(f"data.path: {path} has the columns {', '.join(first)}, which are not those of {dataset}")

    def rows(faults: Faults) -> Iterator[Row]:
        place = Path(path) / split
        for numbered in enumerate(adapter.records(sound(stream, path, split)), start=1):
            made = read_rows([numbered], adapter.parse, place, faults)
            yield from with_names(list(made), faults) if adapter.names_layer else made

    return rows


def _adapter(dataset: str, columns: set[str], names: TagNames) -> Adapter | None:
    """By the columns that are there; the first whose columns are all present."""
    label = _ag_news if dataset == "agnews" else object_row
    known: list[tuple[set[str], Adapter]] = [
        ({"tokens", "ner_tags"}, Adapter(lambda row: _tagged(row["tokens"], row["ner_tags"], names))),
        ({"tokens", "tags"}, Adapter(lambda row: _tagged(row["tokens"], row["tags"], names))),
        ({"sentences", "relations"}, Adapter(DocumentParser())),
        ({"sentences"}, Adapter(_ontonotes, names_layer=True)),
        ({"text", "triple_list"}, Adapter(triple_row)),
        ({"text", "aspect_term", "opinion_term", "sentiment"}, Adapter(_aste, _of_one_text)),
        ({"sentence", "label"}, Adapter(lambda row: _labelled(row["sentence"], row["label"]))),
        ({"text", "label"}, Adapter(label)),
        ({"text", "items"}, Adapter(object_row)),
    ]
    return next((adapter for needed, adapter in known if needed <= columns), None)


def _tag_names(stream: Any, dataset: str) -> TagNames:
    """The names of the tag numbers: the file's own (a ClassLabel), else the published order."""
    features = stream.features or {}
    for column in ("ner_tags", "tags"):
        names = getattr(getattr(features.get(column), "feature", None), "names", None)
        if names:
            return list(names)
    return TAG_NAMES.get(dataset, ())


def _tagged(tokens: object, tags: object, names: TagNames) -> Row:
    if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
        raise Broken(f"the tokens are no list of words: {shown(tokens)}")
    if not isinstance(tags, list) or len(tokens) != len(tags) or not tokens:
        raise Broken(f"{len(tokens)} tokens and {len(tags) if isinstance(tags, list) else 'no'} tags")
    return entity_row(tokens, iob_spans([_tag(tag, names) for tag in tags]))


def _tag(tag: object, names: TagNames) -> str:
    if type(tag) is int and 0 <= tag < len(names):
        return names[tag]
    if isinstance(tag, str) and re.fullmatch(r"O|[BI]-\S+", tag):
        return tag
    raise Broken(f"the tag {shown(tag)} is neither O, B-, I- nor a number with a name; there are {len(names)}")


def _ontonotes(row: Fields) -> list[Row]:
    """conll2012_ontonotesv5: documents of sentences {words, named_entities}; the numbers follow its card's order."""
    sentences = row["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(sentence, Mapping) for sentence in sentences):
        raise Broken(f"the sentences are no list of words and tags: {shown(sentences)}")
    return [_tagged(of.get("words"), of.get("named_entities"), CONLL2012_NAMES) for of in sentences]


def _of_one_text(rows: Iterator[Fields]) -> Iterator[list[Fields]]:
    """The triplets of one sentence follow one another, a row each."""
    return (list(triplets) for _, triplets in groupby(rows, key=lambda row: row["text"]))


def _aste(triplets: list[Fields]) -> Row:
    sentiments = {"positive": "POS", "negative": "NEG", "neutral": "NEU"}
    items: list[Item] = []
    for of in triplets:
        kind: str = of["sentiment"]
        items.append((sentiments.get(kind, kind), of["aspect_term"], of["opinion_term"]))
    return Row(triplets[0]["text"], tuple(items))


def _ag_news(row: Fields) -> Row:
    """The hub counts the classes from 0, the files from 1."""
    label = row["label"]
    if type(label) is not int or not 0 <= label < len(CLASSES):
        raise Broken(f"label {shown(label)} is not 0 to 3")
    return _labelled(row["text"], CLASSES[label])


def _labelled(text: object, label: object) -> Row:
    if not isinstance(text, str) or not text.strip():
        raise Broken("the text is blank")
    if label == -1:
        raise Broken("no label (-1)")
    return Row(text.strip(" "), ((label_text(label),),))
