"""From a data set's name and a path to its three splits: found, read, carved where missing, thinned where asked.

Every choice of examples (a carved split, a few-shot fraction, a maximum) is by the hash of (seed, example id), so it
does not depend on the order of a file, and a smaller choice is contained in a larger one.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import chain
from pathlib import Path

from anit_ds.data.corpora.datasets import DATASETS, SPLITS, DatasetInfo
from anit_ds.data.corpora.hub import hub_splits, is_hub_path
from anit_ds.data.corpora.reading import Faults, OnError, Row, open_binary
from anit_ds.data.corpora.spool import collected
from anit_ds.data.examples import Example, sample_key
from anit_ds.data.tasks import TASKS
from anit_ds.errors import InputError

CARVED_SHARE = 0.1
"""Share of the training split that becomes a missing dev or test split (method.md section 6)."""


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
    on_error: OnError = "raise",
    seed: int = 42,
    task: str | None = None,
    fraction: float = 1.0,
    max_train: int | None = None,
    max_dev: int | None = None,
    max_test: int | None = None,
) -> Corpus:
    """Read `dataset` from a folder with its usual file names, from one file that all splits are carved from, from the
    Hugging Face hub (`owner/name` or `owner/name:config`), or from a folder of Parquet files in the hub's columns.

    A missing dev split is a seeded 10% of train, a missing or unlabelled test split likewise (where there is a
    labelled dev split but no labelled test, as in GLUE, dev becomes the test). `task` says what the items of a
    `jsonl` set must look like. `fraction` keeps that share of train (stratified by label for classification, at
    least one of each); `max_*` a seeded choice of that many.

    Raises InputError: no such data set, no such files, a broken line (unless `on_error` is "skip"), an empty split.
    """
    info = dataset_info(dataset)
    task = info.task or task
    if path is None:
        raise InputError(f"data.path: {dataset} needs the folder or file with its data")
    faults = Faults(on_error)
    corpus = Corpus(dataset, task, [], [], [])
    splits = _read_splits(corpus, info, str(path), faults)
    corpus.skipped = faults.skipped
    if faults.skipped:
        corpus.notes.append(f"{faults.skipped} broken lines left out, such as {faults.first[0]}")
    _carve_missing(corpus, splits, info, seed)
    corpus.train = _thin(splits["train"], fraction, max_train, seed, stratify=task == "classification")
    corpus.dev = _thin(splits["dev"], 1.0, max_dev, seed)
    corpus.test = _thin(splits["test"], 1.0, max_test, seed)
    if fraction < 1:
        corpus.notes.append(f"train: a seeded {fraction:.2%} subset, {len(corpus.train)} examples")
    corpus.labels = tuple(sorted({item[0] for split in splits.values() for e in split for item in e.items}))
    return corpus


def dataset_info(dataset: str) -> DatasetInfo:
    """The registry's entry. Raises InputError with the nearest name for one that is not there."""
    try:
        return DATASETS[dataset]
    except KeyError:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DATASETS)}"
        raise InputError(f"data.dataset: no data set is called {dataset!r}; {hint}") from None


def _read_splits(corpus: Corpus, info: DatasetInfo, path: str, faults: Faults) -> dict[str, Sequence[Example]]:
    splits: dict[str, Sequence[Example]] = {}
    if is_hub_path(path):
        for split, rows in hub_splits(corpus.dataset, path).items():
            splits[split] = _examples(rows(faults), path, f"{corpus.dataset}/{split}", corpus.task)
            corpus.sources[split] = {"path": path}
        if "test" not in splits and "dev" in splits:
            corpus.notes.append("test: no labelled test split, so the validation split is the test")
            splits["test"] = splits.pop("dev")
    else:
        for split, files in _split_files(corpus, info, Path(path)).items():
            located = (row for file in files for row in info.reader(file, faults))
            splits[split] = _examples(located, str(files[0]), f"{corpus.dataset}/{split}", corpus.task)
            corpus.sources[split] = {"path": str(files[0]), "files": str(len(files)), "sha256": _sha256(files)}
    for split, examples in splits.items():
        if not examples:
            raise InputError(f"{corpus.sources[split]['path']}: holds no usable example for the {split} split")
    return splits


def _split_files(corpus: Corpus, info: DatasetInfo, path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        corpus.notes.append(f"one file: dev and test are carved from {path.name}")
        return {"train": [path]}
    if not path.is_dir():
        raise InputError(f"data.path: there is no file or folder {path}")
    found = {split: _matches(path, info.files[split]) for split in SPLITS}
    if not found["train"]:
        raise InputError(f"{path}: no training file of {corpus.dataset}; expected {' or '.join(info.files['train'])}")
    if found["test"] and not info.labelled(found["test"][0]):
        corpus.notes.append(f"test: {found['test'][0].name} carries no labels, so the validation split is the test")
        found["dev"], found["test"] = [], found["dev"]
    return {split: paths for split, paths in found.items() if paths}


def _matches(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of the first pattern that matches any, sorted."""
    for pattern in patterns:
        if paths := sorted(match for match in folder.glob(pattern) if match.is_file()):
            return paths
    return []


def _examples(rows: Iterable[Row], source: str, prefix: str, task: str | None) -> Sequence[Example]:
    return collected(_identified(rows, source, prefix, task))


def _identified(rows: Iterable[Row], source: str, prefix: str, task: str | None) -> Iterator[Example]:
    seen = set()
    for number, row in enumerate(rows):
        id = f"{prefix}/{number if row.key is None else row.key}"
        if row.key is not None:
            if sample_key(id) in seen:
                raise InputError(f"{source}: the id {row.key!r} occurs twice; ids must be unique within a split")
            seen.add(sample_key(id))
        _check_shape(source, id, row, task)
        yield Example(id, row.text, row.items)


def _check_shape(source: str, id: str, row: Row, task: str | None) -> None:
    if task is None:
        return
    fields = TASKS[task].item_fields
    if any(len(item) != len(fields) for item in row.items) or (task == "classification" and len(row.items) != 1):
        wanted = "one label" if task == "classification" else f"items [{', '.join(fields)}]"
        raise InputError(f"{source}: example {id} has {list(row.items)!r}, but the task {task} needs {wanted}")


def _sha256(paths: Iterable[Path]) -> str:
    """The hash of the files' content, one after the other."""
    digest = sha256()
    for path in paths:
        with open_binary(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _carve_missing(corpus: Corpus, splits: dict[str, Sequence[Example]], info: DatasetInfo, seed: int) -> None:
    for split in ("test", "dev"):
        if split in splits:
            continue
        groups = list(dict.fromkeys(info.group_of(example.id) for example in splits["train"]))
        size = max(1, round(CARVED_SHARE * len(groups)))
        if size >= len(groups):
            raise InputError(f"{corpus.dataset}: {len(groups)} training examples are too few to carve a {split} split")
        carved = set(chosen(groups, size, seed, purpose=split))
        whole = splits["train"]
        splits[split] = collected(example for example in whole if info.group_of(example.id) in carved)
        splits["train"] = collected(example for example in whole if info.group_of(example.id) not in carved)
        corpus.notes.append(f"{split}: seeded {CARVED_SHARE:.0%} of train, {len(splits[split])} examples")


def chosen(ids: Sequence[str], size: int, seed: int, purpose: str) -> list[str]:
    """`size` of the ids, by the hash of (seed, purpose, id): a smaller choice is part of a larger one."""
    key = seed.to_bytes(8, "little")

    def rank(id: str) -> bytes:
        encoded = id.encode("utf-8", "surrogatepass")
        return blake2b(encoded, digest_size=8, key=key, person=purpose.encode()).digest()

    return sorted(ids, key=rank)[:size]


def _thin(
    examples: Sequence[Example], fraction: float, at_most: int | None, seed: int, *, stratify: bool = False
) -> Sequence[Example]:
    if fraction < 1:
        strata: dict[object, list[str]] = defaultdict(list)
        for example in examples:
            strata[example.items if stratify else None].append(example.id)
        shares = [chosen(ids, max(1, round(fraction * len(ids))), seed, "fraction") for ids in strata.values()]
        examples = _only(examples, chain.from_iterable(shares))
    if at_most is not None and at_most < len(examples):
        examples = _only(examples, chosen([example.id for example in examples], at_most, seed, "maximum"))
    return examples


def _only(examples: Sequence[Example], ids: Iterable[str]) -> Sequence[Example]:
    kept = set(ids)
    return collected(example for example in examples if example.id in kept)
