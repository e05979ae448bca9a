"""From a data set's name and a path to its three splits: `load_corpus`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anit_ds.data.corpora.choosing import WHOLE, Cut, carve_missing, thin
from anit_ds.data.corpora.datasets import dataset_info
from anit_ds.data.corpora.reading import Faults, OnError
from anit_ds.data.corpora.splits import read_splits
from anit_ds.data.examples import Example
from anit_ds.errors import InputError


@dataclass
class Corpus:
    """A data set's examples, and what a reader of its scores must know about how the splits came to be.

    `labels` are the raw labels that occur, sorted; `notes` say in words what was carved, replaced or left out;
    `sources` maps a split to {"path", "files", "sha256"}: its first file, how many it has, the hash of them all.
    """

    dataset: str
    task: str | None
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    labels: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    skipped: int = 0
    sources: dict[str, dict[str, str]] = field(default_factory=dict)


def load_corpus(
    dataset: str,
    path: Path | str | None,
    *,
    task: str | None = None,
    cut: Cut = WHOLE,
    seed: int = 42,
    on_error: OnError = "raise",
) -> Corpus:
    """Read `dataset` from a folder with its usual file names, from one file that all splits are carved from, from the
    Hugging Face hub (`owner/name` or `owner/name:config`), or from a folder of Parquet files in the hub's columns.

    A missing dev split is a seeded 10% of train, a missing or unlabelled test split likewise (where there is a
    labelled dev split but no labelled test, as in GLUE, dev becomes the test). `task` says what the items of a
    `jsonl` set must look like, `cut` how much of the set is used.

    Raises InputError: no such data set, no such files, a broken line (unless `on_error` is "skip"), an empty split.
    """
    info = dataset_info(dataset)
    task = info.task or task
    if path is None:
        raise InputError(f"data.path: {dataset} needs the folder or file with its data")
    faults = Faults(on_error)
    splits = read_splits(dataset, str(path), task, faults)
    if faults.skipped:
        splits.notes.append(f"{faults.skipped} broken lines left out, such as {faults.first[0]}")
    carve_missing(splits, info.group_of, seed, dataset)
    whole = splits.examples
    train = thin(whole["train"], seed, cut.fraction, cut.max_train, stratify=task == "classification")
    if cut.fraction < 1:
        splits.notes.append(f"train: a seeded {cut.fraction:.2%} subset, {len(train)} examples")
    return Corpus(
        dataset,
        task,
        train,
        dev=thin(whole["dev"], seed, at_most=cut.max_dev),
        test=thin(whole["test"], seed, at_most=cut.max_test),
        labels=tuple(sorted({item[0] for split in whole.values() for e in split for item in e.items})),
        notes=splits.notes,
        skipped=faults.skipped,
        sources=splits.sources,
    )
