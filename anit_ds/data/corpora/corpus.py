"""From a data set's name and a path to its three splits: `load_corpus`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from anit_ds.config import Columns
from anit_ds.data.corpora.choosing import WHOLE, Cut, carve_missing, thin
from anit_ds.data.corpora.datasets import dataset_info
from anit_ds.data.corpora.reading import Faults, OnError
from anit_ds.data.corpora.splits import read_splits
from anit_ds.data.examples import Example, hash_of_id
from anit_ds.errors import InputError

FEW_FOR_DEV = 50
"""Fewer dev examples than these choose the best adapter by chance: a difference of one answer is 2% and more."""


@dataclass
class Corpus:
    """A data set's examples, and what a reader of its scores must know about how the splits came to be.

    `notes` say in words what was carved, replaced or left out; `skipped` counts broken lines, `left_out` what was sound
    but of no use (documents without a layer of names); `sources` maps a split to {"path", "files", "sha256"}: its first
    file, how many it has, the hash of them all.
    """

    dataset: str
    task: str | None
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    notes: list[str] = field(default_factory=list)
    skipped: int = 0
    left_out: int = 0
    sources: dict[str, dict[str, str]] = field(default_factory=dict)


def load_corpus(
    dataset: str,
    path: Path | str | None,
    *,
    task: str | None = None,
    known: Collection[str] | None = None,
    own: Columns | None = None,
    cut: Cut = WHOLE,
    seed: int = 42,
    on_error: OnError = "raise",
) -> Corpus:
    """Read `dataset` from a folder with its usual file names, from one file that all splits are carved from, from the
    Hugging Face hub (`owner/name` or `owner/name:config`), or from a folder of Parquet files in the hub's columns.

    A missing dev split is a seeded 10% of train, by label for classification, and so is a missing test split; in data
    of the user's own equal texts stay together then. Where the test split is there without labels, as in GLUE, dev
    becomes the test. `task` says what the items of a `jsonl` set must look like, `known` which labels they may have,
    `cut` how much of the set is used. With `own`, the columns of a table of the user's, `dataset` is the name that the
    user gives it.

    Raises InputError: no such data set, no such files, a broken line (unless `on_error` is "skip"), an empty split,
    a label that is not known.
    """
    info = dataset_info(dataset, own)
    task = info.task or task
    if path is None:
        raise InputError(f"data.path: {dataset} needs the folder or file with its data")
    faults = Faults(on_error, task, known)
    splits = read_splits(dataset, info, str(path), faults)
    _refuse_unknown(faults)
    notes = splits.notes
    if faults.skipped:
        notes.append(f"{faults.skipped} broken lines left out, such as {faults.first[0]}")
    notes += [f"{count} {what} left out" for what, count in faults.left_out.items()]
    stratify = task == "classification"
    carved = carve_missing(
        splits, info.group_of, seed, dataset, stratify=stratify, same_texts_together=info.task is None
    )
    whole = splits.examples
    train = thin(whole["train"], seed, cut.fraction, cut.max_train, stratify=stratify)
    dev, test = thin(whole["dev"], seed, at_most=cut.max_dev), thin(whole["test"], seed, at_most=cut.max_test)
    notes += [
        f"{split}: {said}" + (f", of which {len(used)} are used" if len(used) < len(whole[split]) else "")
        for split, used in (("test", test), ("dev", dev))
        if (said := carved.get(split))
    ]
    if cut.fraction < 1:
        notes.append(f"train: a seeded {cut.fraction:.2%} subset, {len(train)} examples")
    if cut.max_train and cut.max_train > len(train):
        notes.append(f"train: has {len(train)} examples, fewer than data.max_train {cut.max_train}")
    notes += _texts_in_both(train, {"test": test, "dev": dev})
    if len(dev) < FEW_FOR_DEV:
        notes.append(f"dev: {len(dev)} examples are few to choose an adapter by; have at least {FEW_FOR_DEV}")
    return Corpus(
        dataset,
        task,
        train,
        dev,
        test,
        notes=notes,
        skipped=faults.skipped,
        left_out=sum(faults.left_out.values()),
        sources=splits.sources,
    )


def _refuse_unknown(faults: Faults) -> None:
    """Raises InputError naming the first label that is not known with its place, and a few more."""
    if not faults.unknown:
        return
    (label, place), *more = faults.unknown.items()
    others = f"; nor are {', '.join(repr(other) for other, _ in more[:5])}" if more else ""
    there = ", ".join(repr(label) for label in list(faults.known or ())[:10])
    raise InputError(f"{place}: label {label!r} is not under `labels` in the instructions{others}; there are {there}")


def _texts_in_both(train: Iterable[Example], others: Mapping[str, Sequence[Example]]) -> list[str]:
    """What to say of texts of dev and test that are trained on too: their scores promise more than new texts give."""
    texts = {split: Counter(hash_of_id(example.text, 8) for example in examples) for split, examples in others.items()}
    asked = set(chain.from_iterable(texts.values()))
    trained = {text for example in train if (text := hash_of_id(example.text, 8)) in asked}
    both = {split: sum(counted[text] for text in trained) for split, counted in texts.items()}
    return [f"{split}: {both[split]} of {len(others[split])} texts stand in train too" for split in both if both[split]]
