"""Rows that `datasets` streams: from the Hugging Face hub, from Parquet or Arrow files, from a `save_to_disk` folder.

A hub path is written `owner/name` or `owner/name:config`. A folder's *.parquet files have names that begin with the
split (as the hub names them: train-00000-of-00001.parquet). A set of any size is read without a copy in memory or in
the cache of `datasets`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anit_ds.data.corpora.names import NAMES
from anit_ds.errors import InputError, first_line, shown

Fields = Mapping[str, Any]
_SAVED = ("dataset_dict.json", "state.json")


def is_hub_path(path: str) -> bool:
    """Whether `path` names something on the hub, a folder of Parquet files or one of `save_to_disk`, rather than files
    in their own format."""
    local = Path(path)
    try:
        exists = local.exists()
    except OSError as error:  # a name that no file system takes
        raise InputError(f"data.path: {shown(path)} is no path ({error.strerror})") from error
    if exists:
        return local.is_dir() and (_is_saved(local) or any(local.rglob("*.parquet")))
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", path) is not None


def load(path: str) -> Mapping[str, Any]:
    """The streams of what `is_hub_path` knows, by the names of their splits. Raises InputError where that fails."""
    import datasets

    folder = Path(path) if Path(path).is_dir() else None
    try:
        if folder and _is_saved(folder):
            saved = datasets.load_from_disk(path)
            whole = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            return {split: part.to_iterable_dataset() for split, part in whole.items()}
        if folder:
            return _streams("parquet", _parquet_files(folder))
        name, _, config = path.partition(":")
        loaded: Mapping[str, Any] = datasets.load_dataset(name, config or None, streaming=True)
        return loaded
    except InputError:
        raise
    except Exception as error:  # the hub's, pyarrow's and fsspec's have no common kind
        if folder:
            raise InputError(f"data.path: cannot read the data set in {path} ({first_line(error)})") from error
        raise InputError(
            f"data.path: there is no file or folder {path}, and the hub has no set of that name for us "
            f"({first_line(error)})"
        ) from error


def stream_of(path: Path) -> Iterator[tuple[int, Fields]]:
    """(its number from 1, the row) of one Parquet or Arrow file. Raises InputError where it cannot be read."""
    try:
        yield from enumerate(_streams(path.suffix[1:].lower(), {"train": [glob.escape(str(path))]})["train"], start=1)
    except Exception as error:  # as above
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error


def sound(stream: Iterable[Fields], path: str, split: str) -> Iterator[Fields]:
    """The rows of a stream; InputError where the files behind it cannot be read on."""
    try:
        yield from stream
    except Exception as error:  # pyarrow's, fsspec's and the network's have no common kind
        raise InputError(f"data.path: the {split} split of {path} cannot be read ({first_line(error)})") from error


def _streams(kind: str, files: dict[str, list[str]]) -> Mapping[str, Any]:
    import datasets

    loaded: Mapping[str, Any] = datasets.load_dataset(kind, data_files=files, streaming=True)
    return loaded


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """For each name of a split its files: train.parquet alone where there is one, else all that begin with the name, as
    train-00000-of-00001.parquet does and values.parquet does not."""
    names = sorted((name for split in NAMES.values() for name in split), key=len, reverse=True)
    files: dict[str, list[str]] = {}
    for path in sorted(map(str, folder.rglob("*.parquet"))):
        if name := next((name for name in names if re.match(rf"{name}(?![a-z])", Path(path).name.lower())), None):
            files.setdefault(name, []).append(path)
    if not files:
        raise InputError(f"data.path: no Parquet file in {folder} has a name that begins with train, dev or test")
    whole = {name: [path for path in of if Path(path).name.lower() == f"{name}.parquet"] for name, of in files.items()}
    return {name: whole[name] or of for name, of in files.items()}
