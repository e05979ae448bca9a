"""Files and folders that a kill leaves either old or new, never torn; checksums, JSON, lines, and the user's cache."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from anit_ds.errors import InputError, shown

_BLOCK = 1 << 20
_SAMPLES, _SAMPLE = 64, 4096  # of a weight file what `checkpoint_hash` reads: so many places, so many bytes at each
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
# In indented JSON; a text in it has no line end of its own.
_LIST_OF_NUMBERS = re.compile(r"\[(\n[-+.\deE,\s]+)\]")

Report = Callable[[int, str], None]
"""Told of a line that cannot be read: its number, from 1, and what is wrong with it."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` when the block ends well.

    Whenever the process or the machine stops, `path` is the old file or the new one. Several processes may write one
    path; the last one stays. Raises InputError when the folder cannot be written to.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = _claimed(unfinished)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot write there ({error.strerror})") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the content does
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _claimed(unfinished: Path) -> BinaryIO:
    """The file, new, under a lock that tells whoever sweeps that its writer lives."""
    while True:
        file = unfinished.open("wb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        if unfinished.exists():  # not swept between the two lines
            return file
        file.close()


def remove_unless_written(path: Path, after: float) -> None:
    """Remove what a killed `replacing` left; where the file system has no locks, only once `after` seconds old."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if time.time() - path.lstat().st_mtime < after:
                return
        path.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends well.

    Whenever the process or the machine stops, `folder` is the old one or the new one, whole. The next call removes what
    a killed one left. Only where the file system cannot swap two names (NFS), a stop between two renames leaves the old
    folder beside its place, as .NAME.old, and the next call puts it back. One process at a time may write a folder.
    """
    unfinished, old = (folder.with_name(f".{folder.name}.{rest}") for rest in ("writing", "old"))
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    for rest in (unfinished, old):
        shutil.rmtree(rest, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        _flush_tree(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if folder.exists() and not _swap(unfinished, folder):
        os.rename(folder, old)
    if not folder.exists():
        os.rename(unfinished, folder)
    _flush(folder.parent)
    for rest in (unfinished, old):
        shutil.rmtree(rest, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(done == 0)


def _flush_tree(folder: Path) -> None:
    """Bring a folder's files to the disk, then the folders, so that a rename cannot overtake them."""
    below = sorted(folder.rglob("*"), reverse=True)
    for path in [*(p for p in below if p.is_file()), *(p for p in below if p.is_dir()), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, whenever the process dies."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, a list of numbers on one line, atomically, into a folder that is made where it is missing;
    see `finite_or_null`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite_or_null(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, _LIST_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def finite_or_null(content: Any) -> Any:
    """The same with None for every NaN and infinity: JSON has no word for them, and strict readers refuse the file."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite_or_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_null(value) for value in content]
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError when it cannot be read, ValueError when it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_line(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """A value as one line of JSON with its newline: UTF-8, and only what UTF-8 cannot hold escaped. `default` makes
    something else of a part that JSON has no form for."""
    try:
        return json.dumps(value, ensure_ascii=False, default=default).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a character
        return json.dumps(value, default=default).encode("ascii") + b"\n"


def text_lines(raw: Iterable[bytes], report: Report) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of UTF-8 text that was cut at LF, as a binary file is.

    A BOM and the CR of a CRLF are removed. Unicode's further line breaks stay: they occur inside texts. A line that is
    not UTF-8 is reported and left out, and so is a whole file in UTF-16.
    """
    for number, line in enumerate(raw, start=1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            report(number, "UTF-16 text; save it as UTF-8")
            return
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            report(number, f"not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        yield number, text.removesuffix("\n").removesuffix("\r")


def json_lines(raw: Iterable[bytes], report: Report) -> Iterator[tuple[int, Any]]:
    """(line number, value) of JSON lines that were cut at LF; blank lines are ignored, broken ones reported."""
    for number, line in text_lines(raw, report):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report(number, f"not valid JSON ({json_problem(error)})")
            continue
        yield number, value


def json_problem(error: Exception) -> str:
    """Why a text is no JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "msg", None) or "a number of too many digits")


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file. Raises InputError that names the file, and the line where one is broken."""

    def refuse(line: int, problem: str) -> NoReturn:
        raise InputError(f"{path}:{line}: {problem}")

    try:
        with path.open("rb") as file:
            return [value for _, value in json_lines(file, refuse)]
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error


def blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes in large pieces."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def sha256_of(*paths: Path) -> str:
    """Hexadecimal SHA-256 of the bytes of one file, or of several, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        for block in blocks(path):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """One hash of a model's folder: its configuration, and its weight files' sizes with samples of what they hold
    (reading a large model whole takes minutes)."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            for place in range(_SAMPLES):
                opened.seek(place * size // _SAMPLES)
                digest.update(opened.read(_SAMPLE))
    return digest.hexdigest()


def expanded_path(text: str) -> str:
    """A path as a configuration writes it, with a leading `~` and every `${NAME}` or `$NAME` put in.

    Raises ValueError for a variable that is not set, a user without a home, and what no file system takes.
    """

    def of_environment(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        if name not in os.environ:
            raise ValueError(f"the environment variable {name!r} is not set, in {shown(text)}")
        return os.environ[name]

    path = re.sub(r"\$(\w+|\{[^{}]*\})", of_environment, text)
    if path.startswith("~"):
        home = os.path.expanduser(path)
        if home == path:
            raise ValueError(f"{shown(path)} begins with the home folder of nobody; a folder named ~ is written ./~")
        path = home
    if not path.strip():
        raise ValueError("an empty path")
    if "\0" in path:
        raise ValueError(f"{shown(path)} holds a NUL character")
    if len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.split("/")):
        raise ValueError("longer than a path can be")
    return path


def user_cache() -> Path:
    """The project's folder in the user's cache (XDG_CACHE_HOME, by default ~/.cache)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "anit-ds"
