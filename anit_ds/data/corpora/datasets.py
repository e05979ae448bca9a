"""The data sets known by name: their task, their instructions, their reader and the file names people have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anit_ds.config import Columns
from anit_ds.data.corpora.agnews import read_agnews
from anit_ds.data.corpora.aste import read_aste
from anit_ds.data.corpora.columns import row_of
from anit_ds.data.corpora.conll import read_columns, read_ontonotes
from anit_ds.data.corpora.jsonl import read_jsonl
from anit_ds.data.corpora.names import NAMES, SPLITS
from anit_ds.data.corpora.reading import Reader, Row
from anit_ds.data.corpora.scierc import read_scierc
from anit_ds.data.corpora.sst2 import has_labels, read_sst2
from anit_ds.data.corpora.table import ENDINGS, read_table
from anit_ds.data.corpora.triples import read_triples
from anit_ds.errors import InputError, nearest, shown


@dataclass(frozen=True)
class DatasetInfo:
    """How to read one data set.

    `task` is None where the instructions decide it; `files` maps a split to file-name patterns: the files
    of the first pattern that matches any are the split; `labelled` tells whether a test file carries labels at all;
    examples whose ids have one `group_of` come from one document and are never carved into different splits. `row`,
    of a task, turns a record of the hub into ours where the data set is the user's own.
    """

    task: str | None
    instructions: str | None
    reader: Reader
    files: Mapping[str, tuple[str, ...]]
    labelled: Callable[[Path], bool] = field(default=lambda path: True)
    group_of: Callable[[str], str] = field(default=lambda id: id)
    row: Callable[[str | None], Callable[[Any], Row]] | None = None


def _named(*patterns: str, **more: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """File-name patterns in which `{}` stands for each of a split's names.

    `more` gives a split's further names, which are looked for first.
    """
    return {
        split: (*more.get(split, ()), *(pattern.format(name) for pattern in patterns for name in NAMES[split]))
        for split in SPLITS
    }


def _folders(split: str) -> list[str]:
    return [f"{name}/**/*gold_conll" for name in NAMES[split]]


def _aste(instructions: str) -> DatasetInfo:
    return DatasetInfo("absa", instructions, read_aste, _named("{}_triplets.txt", "{}.txt"))


def _triples(instructions: str) -> DatasetInfo:
    return DatasetInfo("relation", instructions, read_triples, _named("{}_triples.json", "{}.json", "{}.jsonl"))


_COLUMNS = ("{}.txt", "{}.conll", "{}.tsv", "{}.bio", "{}.iob")

DATASETS: dict[str, DatasetInfo] = {
    "jsonl": DatasetInfo(None, None, read_jsonl, _named("{}.jsonl", "{}.json")),
    "movie-reviews": DatasetInfo("classification", "movie-reviews", read_jsonl, _named("{}.jsonl")),
    "sst2": DatasetInfo("classification", "sst2", read_sst2, _named("{}.tsv"), has_labels),
    "agnews": DatasetInfo("classification", "agnews", read_agnews, _named("{}.csv")),
    "conll2003": DatasetInfo(
        "ner",
        "conll2003",
        read_columns,
        _named(*_COLUMNS, train=("eng.train",), dev=("eng.testa",), test=("eng.testb",)),
    ),
    "ontonotes5": DatasetInfo(
        "ner",
        "ontonotes5",
        read_ontonotes,
        _named(
            *_COLUMNS,
            train=("onto.train.ner", *_folders("train")),
            dev=("onto.development.ner", *_folders("dev")),
            test=("onto.test.ner", *_folders("test")),
        ),
    ),
    "wnut17": DatasetInfo(
        "ner",
        "wnut17",
        read_columns,
        _named(
            *_COLUMNS,
            train=("wnut17train.conll",),
            dev=("emerging.dev.conll",),
            test=("emerging.test.annotated",),
        ),
    ),
    "nyt24": _triples("nyt24"),
    "webnlg": _triples("webnlg"),
    "scierc": DatasetInfo(
        "relation",
        "scierc",
        read_scierc,
        _named("{}.json", "{}.jsonl"),
        group_of=lambda id: id.rpartition(".")[0],
    ),
    "14lap": _aste("aste-laptop"),
    "14res": _aste("aste-restaurant"),
    "15res": _aste("aste-restaurant"),
    "16res": _aste("aste-restaurant"),
}


_OWN = re.compile(r"[\w][\w.-]*")


def dataset_info(dataset: str, own: Columns | None = None) -> DatasetInfo:
    """The registry's entry; with `own`, the columns of a table of the user's, any other name is that table's.

    Raises InputError with the nearest name for one that is not there.
    """
    if dataset in DATASETS:
        if own is not None and own != Columns():
            raise InputError(
                f"data.columns: {dataset} is known by name, its columns too; give data.dataset a name of your own"
            )
        return DATASETS[dataset]
    if own is not None:
        if not _OWN.fullmatch(dataset):
            raise InputError(f"data.dataset: {shown(dataset)} is no name; use letters, digits, ., _ and -")
        files = _named(*(f"{{}}{ending}" for ending in ENDINGS))
        return DatasetInfo(None, None, partial(read_table, columns=own), files, row=partial(row_of, own))
    raise InputError(
        f"data.dataset: no data set is called {shown(dataset)}; {nearest(dataset, DATASETS)} "
        "(one of your own needs data.instructions_file)"
    )
