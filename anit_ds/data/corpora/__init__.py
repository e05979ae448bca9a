"""Data sets in the files people have: `load_corpus(name, path)` gives examples, one reader a file format."""

from __future__ import annotations

from anit_ds.data.corpora.corpus import Corpus, dataset_info, load_corpus
from anit_ds.data.corpora.datasets import DATASETS, DatasetInfo
from anit_ds.data.corpora.reading import Faults, Reader, Row

__all__ = [
    "DATASETS",
    "Corpus",
    "DatasetInfo",
    "Faults",
    "Reader",
    "Row",
    "dataset_info",
    "load_corpus",
]
