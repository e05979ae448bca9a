"""The same data sets from the Hugging Face hub, or from Parquet files in the hub's columns, through `datasets`.

A hub path is written `owner/name`, `owner/name:config`, or is a folder with *.parquet files whose names begin with
the split (as the hub names them: train-00000-of-00001.parquet). Rows are streamed, so a set of any size is read
without a copy in memory or in the cache of `datasets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from anit_ds.data.corpora.agnews import CLASSES
from anit_ds.data.corpora.conll import entity_row, iob_spans
from anit_ds.data.corpora.jsonl import object_row
from anit_ds.data.corpora.reading import Faults, Row
from anit_ds.data.corpora.scierc import document_rows
from anit_ds.data.corpora.tag_names import CONLL2012_NAMES, TAG_NAMES
from anit_ds.data.corpora.triples import triple_row
from anit_ds.errors import InputError

SPLIT_NAMES = {"train": ("train",), "dev": ("validation", "dev", "valid"), "test": ("test",)}

TagNames = Sequence[str]
Adapter = Callable[[Iterator[Mapping[str, Any]], TagNames], Iterator[Row | str]]
"""Turns the hub's rows into ours; what is wrong with a row comes as a sentence."""


def is_hub_path(path: str) -> bool:
    """Whether `path` names something on the hub or a folder of Parquet files, rather than files in their own format."""
    local = Path(path)
    if local.exists():
        return local.is_dir() and any(local.rglob("*.parquet"))
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", path) is not None


def hub_splits(dataset: str, path: str) -> dict[str, Callable[[Faults], Iterator[Row]]]:
    """For each split that is there, a function that streams its rows.

    Raises InputError when the set cannot be loaded, has no train split, or has columns that this data set's adapter
    does not know. A test split whose labels are all -1 (GLUE) counts as not there.
    """
    loaded = _load(path)
    splits = {}
    for split, names in SPLIT_NAMES.items():
        stream = next((loaded[name] for name in names if name in loaded), None)
        if stream is not None and not _is_unlabelled(stream):
            splits[split] = _reader(dataset, path, split, stream)
    if "train" not in splits:
        raise InputError(f"data.path: {path} has no train split with labels, only {', '.join(loaded)}")
    return splits


def _load(path: str) -> Mapping[str, Any]:
    import datasets

    try:
        if Path(path).is_dir():
            return datasets.load_dataset("parquet", data_files=_parquet_files(Path(path)), streaming=True)
        name, _, config = path.partition(":")
        return datasets.load_dataset(name, config or None, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if Path(path).is_dir():
            raise InputError(f"data.path: cannot read the Parquet files in {path} ({reason})") from error
        raise InputError(
            f"data.path: there is no file or folder {path}, and the hub has no set of that name for us ({reason})"
        ) from error


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for names in SPLIT_NAMES.values():
        for name in names:
            if found := sorted(map(str, folder.rglob(f"{name}*.parquet"))):
                files[name] = found
    return files


def _is_unlabelled(stream: Any) -> bool:
    first: dict[str, Any] = next(iter(stream.take(1)), {})
    return first.get("label") == -1


def _reader(dataset: str, path: str, split: str, stream: Any) -> Callable[[Faults], Iterator[Row]]:
    first = next(iter(stream.take(1)), None)
    if first is None:
        raise InputError(f"data.path: the {split} split of {path} is empty")
    adapter = _adapter(dataset, set(first))
    if adapter is None:
        raise InputError(f"data.path: {path} has the columns {', '.join(first)}, which are not those of {dataset}")
    tag_names = _tag_names(stream, dataset)

    def rows(faults: Faults) -> Iterator[Row]:
        for number, row in enumerate(adapter(iter(stream), tag_names), start=1):
            if isinstance(row, str):
                faults.report(Path(path) / split, number, row)
            else:
                yield row

    return rows


def _adapter(dataset: str, columns: set[str]) -> Adapter | None:
    """By the columns that are there; the first whose columns are all present."""
    known: list[tuple[set[str], Adapter]] = [
        ({"tokens", "ner_tags"}, lambda rows, names: (_tagged(r["tokens"], r["ner_tags"], names) for r in rows)),
        ({"tokens", "tags"}, lambda rows, names: (_tagged(r["tokens"], r["tags"], names) for r in rows)),
        ({"sentences", "relations"}, _scierc),
        ({"sentences"}, _ontonotes),
        ({"text", "triple_list"}, lambda rows, _: map(triple_row, rows)),
        ({"text", "aspect_term", "opinion_term", "sentiment"}, _aste),
        ({"sentence", "label"}, lambda rows, _: (_labelled(r["sentence"], str(r["label"])) for r in rows)),
        ({"text", "label"}, _ag_news if dataset == "agnews" else lambda rows, _: map(object_row, rows)),
        ({"text", "items"}, lambda rows, _: map(object_row, rows)),
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


def _tagged(tokens: Sequence[str], tags: Sequence[int | str], names: TagNames) -> Row | str:
    if len(tokens) != len(tags) or not tokens:
        return f"{len(tokens)} tokens and {len(tags)} tags"
    try:
        return entity_row(tokens, iob_spans([tag if isinstance(tag, str) else names[tag] for tag in tags]))
    except IndexError:
        return f"a tag number in {list(tags)} has no name; there are {len(names)}"


def _ontonotes(rows: Iterator[Mapping[str, Any]], names: TagNames) -> Iterator[Row | str]:
    """conll2012_ontonotesv5: documents of sentences {words, named_entities}; the numbers follow its card's order."""
    for row in rows:
        for sentence in row["sentences"]:
            yield _tagged(sentence["words"], sentence["named_entities"], CONLL2012_NAMES)


def _scierc(rows: Iterator[Mapping[str, Any]], _: TagNames) -> Iterator[Row | str]:
    for number, row in enumerate(rows):
        try:
            yield from document_rows(row, number)
        except ValueError as error:
            yield str(error)


def _aste(rows: Iterator[Mapping[str, Any]], _: TagNames) -> Iterator[Row | str]:
    """One row per triplet; the triplets of one sentence follow one another."""
    sentiments = {"positive": "POS", "negative": "NEG", "neutral": "NEU"}
    for text, triplets in groupby(rows, key=lambda row: row["text"]):
        yield Row(
            text,
            tuple(
                (sentiments.get(t["sentiment"], t["sentiment"]), t["aspect_term"], t["opinion_term"]) for t in triplets
            ),
        )


def _ag_news(rows: Iterator[Mapping[str, Any]], _: TagNames) -> Iterator[Row | str]:
    """The hub counts the classes from 0, the files from 1."""
    for row in rows:
        known = isinstance(row["label"], int) and 0 <= row["label"] < len(CLASSES)
        yield _labelled(row["text"], CLASSES[row["label"]]) if known else f"label {row['label']!r} is not 0 to 3"


def _labelled(text: object, label: str) -> Row | str:
    if not isinstance(text, str) or not text.strip():
        return "the text is blank"
    return Row(text.strip(), ((label,),))
