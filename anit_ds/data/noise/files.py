"""A noisy set's files: written whole or not at all, hashed while written, and recognised when they are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from anit_ds.data.examples import Example
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well.

    Raises InputError when the folder cannot be written to.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        file = unfinished.open("wb")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot write there ({error.strerror})") from error
    with file:
        yield file
    unfinished.replace(path)


def write_pieces(path: Path, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write the pieces to `path`; returns its sha256 and its number of lines."""
    digest, lines = sha256(), 0
    with replacing(path) as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            lines += piece.count(b"\n")
    return {"sha256": digest.hexdigest(), "lines": lines}


def write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")


def file_hash(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def content_hash(examples: Sequence[Example]) -> str:
    """sha256 over ids, texts and items; of the file itself where the examples are kept in one."""
    if isinstance(examples, RecordFile):
        return file_hash(examples.path)
    digest = sha256()
    for example in examples:
        digest.update(repr((example.id, example.text, example.items)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint(facts: dict[str, Any]) -> str:
    """One hash of everything a noisy set follows from; `facts` is plain data."""
    return sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def existing_manifest(folder: Path, expected: str) -> dict[str, Any] | None:
    """The manifest in `folder` when it has this fingerprint and every file it lists is there unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest["fingerprint"] == expected and all(
            file_hash(folder / name) == facts["sha256"] for name, facts in manifest["outputs"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if intact else None


def blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    """The files' content one after the other, in large pieces."""
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
