"""What every reader of a data file needs: text without BOM or CRLF surprises, and what to do with a broken line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from anit_ds.data.examples import Item
from anit_ds.errors import InputError

OnError = Literal["raise", "skip"]


class Row(NamedTuple):
    """One example as a file has it. `id` names it within its split where the file does; else it is counted."""

    text: str
    items: tuple[Item, ...]
    id: str | None = None


@dataclass
class Faults:
    """Decides about broken lines: the first one ends the reading (`raise`), or they are counted (`skip`)."""

    on_error: OnError = "raise"
    skipped: int = 0
    first: list[str] = field(default_factory=list)

    def report(self, path: Path, line: int, problem: str) -> None:
        """Raises InputError naming file, line and problem unless broken lines are to be skipped."""
        message = f"{path}:{line}: {problem}"
        if self.on_error == "raise":
            raise InputError(f"{message} (on_error: skip leaves such lines out and counts them)")
        self.skipped += 1
        if len(self.first) < 3:
            self.first.append(message)


Reader = Callable[[Path, Faults], Iterator[Row]]
"""Yields a file's rows in order; a broken one goes to `Faults`."""


def numbered_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end), a UTF-8 BOM and CRs removed. A line that is not UTF-8 is broken.

    Only LF and CRLF end a line: Unicode has further line breaks, and they occur inside texts.
    """
    with open_binary(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                faults.report(path, number, f"not UTF-8 text (byte {error.start + 1} of the line)")
                continue
            if number == 1:
                line = line.removeprefix("\ufeff")
            yield number, line.removesuffix("\n").removesuffix("\r")


def open_binary(path: Path) -> BinaryIO:
    """`path` opened for reading bytes. Raises InputError when that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot read the data file ({error.strerror})") from error
