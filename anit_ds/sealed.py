"""JSON files and folders that say whether they are still what was written: what decides a number is checked.

A sealed JSON file holds, beside its content, the SHA-256 of that content. A sealed folder has one such file, with the
SHA-256 of every other file in the folder. What an older version wrote without a seal is read as it stands.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from anit_ds.errors import InputError
from anit_ds.files import finite_or_null, read_json, sha256_of, write_json

_SEAL = "checksum"


class Damaged(InputError):
    """A file that is missing, unreadable, or not what was written; the sentence names it."""


def content_hash(content: Any) -> str:
    """Hexadecimal SHA-256 of plain data, the same before it is written as JSON and after it is read."""
    read_back = json.loads(json.dumps(finite_or_null(content)))
    return sha256(json.dumps(read_back, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with its seal, atomically, as indented JSON."""
    write_json(path, {**content, _SEAL: content_hash(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The content that `write_sealed` was given. Raises Damaged."""
    try:
        content = read_json(path)
    except OSError as error:
        raise Damaged(f"{path}: cannot read it ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: damaged, it is no JSON any more") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: damaged, it is no JSON object any more")
    seal = content.pop(_SEAL, None)
    if seal is not None and seal != content_hash(content):
        raise Damaged(f"{path}: damaged or edited, it does not have the checksum that it was written with")
    return content


def seal_folder(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write folder/`name`: `content`, sealed, with the SHA-256 of every other file in the folder."""
    sums = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    write_sealed(folder / name, {**content, "sha256": sums})


def read_sealed_folder(folder: Path, name: str) -> dict[str, Any]:
    """The content of folder/`name`, every file that it lists being what was written. Raises Damaged."""
    content = read_sealed(folder / name)
    sums = content.get("sha256")
    if not isinstance(sums, dict):
        raise Damaged(f"{folder / name}: damaged, it lists no checksums")
    for file, digest in sums.items():
        check_file(folder / file, digest)
    return content


def check_file(path: Path, digest: str) -> None:
    """Raises Damaged where `path` is not there or its SHA-256 is another one."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise Damaged(f"{path}: cannot read it ({error.strerror})") from error
    if found != digest:
        raise Damaged(f"{path}: damaged or edited, it does not have the checksum that it was written with")
