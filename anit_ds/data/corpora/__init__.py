"""Data sets in the files people have: `load_corpus(name, path)` gives examples, with one reader per file format."""

from __future__ import annotations

from anit_ds.data.corpora.choosing import Cut
from anit_ds.data.corpora.corpus import Corpus, load_corpus
from anit_ds.data.corpora.datasets import DATASETS, DatasetInfo, dataset_info
from anit_ds.data.corpora.reading import Faults, Reader, Row

__all__ = [
    "DATASETS",
    "Corpus",
    "Cut",
    "DatasetInfo",
    "Faults",
    "Reader",
    "Row",
    "dataset_info",
    "load_corpus",
]
