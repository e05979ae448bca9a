"""From a data set's name and a path to the splits that are there: files by their usual names, one file, or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anit_ds.data.corpora.datasets import DatasetInfo
from anit_ds.data.corpora.hub import hub_splits
from anit_ds.data.corpora.names import SPLITS
from anit_ds.data.corpora.reading import Faults, Row
from anit_ds.data.corpora.spool import collected
from anit_ds.data.corpora.streams import is_hub_path
from anit_ds.data.examples import Example, sample_key
from anit_ds.errors import InputError, shown
from anit_ds.files import sha256_of

_LANGUAGES = {"arabic", "chinese", "english"}
"""Folders of OntoNotes, whose instructions are for its English part."""


@dataclass
class Splits:
    """The examples of each split, the files they come from, and what has to be said of them (see `Corpus`)."""

    examples: dict[str, Sequence[Example]] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_splits(dataset: str, info: DatasetInfo, path: str, faults: Faults) -> Splits:
    """The splits that are there; train always is. Raises InputError where it is not, or a split is empty."""
    splits = Splits()
    if is_hub_path(path) and not _lies_in_files(info, Path(path)):
        found = hub_splits(dataset, info, path, faults.task)
        if "test" in found and found["test"] is None and found.get("dev") is not None:
            splits.notes.append("test: carries no labels, so the validation split is the test")
            found["test"] = found.pop("dev")
        for split, rows in found.items():
            if rows is not None:
                splits.examples[split] = collected(_examples(rows(faults), path, f"{dataset}/{split}"))
                splits.sources[split] = {"path": path}
    else:
        for split, files in _files(dataset, info, Path(path), splits.notes).items():
            rows_of_split = (row for file in files for row in info.reader(file, faults))
            splits.examples[split] = collected(_examples(rows_of_split, str(files[0]), f"{dataset}/{split}"))
            splits.sources[split] = {"path": str(files[0]), "files": str(len(files)), "sha256": sha256_of(*files)}
    for split, examples in splits.examples.items():
        if not examples:
            raise InputError(f"{splits.sources[split]['path']}: holds no usable example for the {split} split")
    return splits


def _files(dataset: str, info: DatasetInfo, path: Path, notes: list[str]) -> dict[str, list[Path]]:
    if path.is_file():
        notes.append(f"one file: dev and test are carved from {path.name}")
        return {"train": [path]}
    if not path.is_dir():
        raise InputError(f"data.path: there is no file or folder {path}")
    found = {split: _of_one_language(_matches(path, info.files[split]), notes) for split in SPLITS}
    if not found["train"]:
        raise InputError(f"{path}: no training file of {dataset}; expected {' or '.join(info.files['train'])}")
    if found["test"] and not info.labelled(found["test"][0]):
        notes.append(f"test: {found['test'][0].name} carries no labels, so the validation split is the test")
        found["dev"], found["test"] = [], found["dev"]
    return {split: paths for split, paths in found.items() if paths}


def _lies_in_files(info: DatasetInfo, path: Path) -> bool:
    """Whether a folder with Parquet files has splits in other files too, which nothing would stream."""
    found = (file for split in SPLITS for file in _matches(path, info.files[split])) if path.is_dir() else ()
    return any(file.suffix.lower() != ".parquet" for file in found)


def _matches(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of the first pattern that matches any, sorted; upper and lower case count as one in a file's name."""
    names = [(path.name.lower(), path) for path in sorted(folder.iterdir())]
    for pattern in patterns:
        found = folder.glob(pattern) if "*" in pattern else (path for name, path in names if name == pattern)
        if paths := sorted(match for match in found if match.is_file()):
            return paths
    return []


def _of_one_language(paths: list[Path], notes: list[str]) -> list[Path]:
    """The English files where a tree holds several languages."""
    languages = {part for path in paths for part in path.parts if part in _LANGUAGES}
    if len(languages) < 2 or "english" not in languages:
        return paths
    notes.append(f"only english/ is read, not {', '.join(sorted(languages - {'english'}))}")
    return [path for path in paths if "english" in path.parts]


def _examples(rows: Iterable[Row], source: str, prefix: str) -> Iterator[Example]:
    seen: set[int] = set()
    for number, row in enumerate(rows):
        if number and bool(seen) is (row.id is None):
            place = f"example {number + 1} {'has one' if row.id is not None else 'has none'}"
            raise InputError(f"{source}: give all examples of a split an id, or none of them; {place}")
        id = f"{prefix}/{number if row.id is None else row.id}"
        if row.id is not None:
            key = sample_key(id)  # eight bytes, where an id may be a long text
            if key in seen:
                raise InputError(f"{source}: the id {shown(row.id)} occurs twice; ids must be unique within a split")
            seen.add(key)
        yield Example(id, row.text, row.items)
