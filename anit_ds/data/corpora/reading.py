"""What every reader of a data file shares: its lines, and what becomes of a record that is broken.

A parser turns one record into rows and raises `Broken`, or whatever an unforeseen value makes it raise; `read_rows` is
the one place where that becomes a fault with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from anit_ds.data.examples import Item
from anit_ds.data.tasks import TASKS
from anit_ds.errors import InputError, shown
from anit_ds.files import json_lines, text_lines

OnError = Literal["raise", "skip"]
Record = TypeVar("Record")


class Row(NamedTuple):
    """One example as a file has it. `id` names it within its split where the file does; else it is counted."""

    text: str
    items: tuple[Item, ...]
    id: str | None = None


class Broken(ValueError):
    """What is wrong with a record, in a sentence without its place."""


@dataclass
class Faults:
    """Decides about broken records: the first one ends the reading (`raise`), or they are counted (`skip`).

    `task` says what the items of a row must look like, `known` which labels they may have (any by default); `unknown`
    keeps where each other one first stands. `left_out` counts what is sound but of no use, by its kind. `cure` is what
    whoever asked may do about the first one.
    """

    on_error: OnError = "raise"
    task: str | None = None
    known: Collection[str] | None = None
    unknown: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    first: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    cure: str = " (on_error: skip leaves such lines out and counts them)"

    def report(self, path: Path, line: int, problem: str) -> None:
        """Raises InputError naming file, line and problem unless broken lines are to be skipped."""
        message = f"{path}:{line}: {' '.join(problem.split())}"
        if self.on_error == "raise":
            raise InputError(f"{message}{self.cure}")
        self.skipped += 1
        if len(self.first) < 3:
            self.first.append(str(InputError(message)))

    def look_for_unknown(self, path: Path, line: int, items: Iterable[Item]) -> None:
        """Note labels that are not known, where they first stand."""
        for label, *_ in items:
            if self.known is not None and label not in self.known:
                self.unknown.setdefault(label, f"{path}:{line}")

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count what a reader leaves out by intent, whatever `on_error` says."""
        self.left_out[what] = self.left_out.get(what, 0) + count


Reader = Callable[[Path, Faults], Iterator[Row]]
"""Yields a file's rows in order; a broken one goes to `Faults`."""


def read_rows(
    records: Iterable[tuple[int, Record]], parse: Callable[[Record], Row | Iterable[Row]], path: Path, faults: Faults
) -> Iterator[Row]:
    """The rows of numbered records; a record with anything wrong in it is reported and left out whole."""
    for number, record in records:
        try:
            made = parse(record)
            rows = [made] if isinstance(made, Row) else list(made)
            for row in rows:
                _check(row, faults.task)
        except Broken as error:
            faults.report(path, number, str(error))
        except Exception as error:  # whatever a value that nobody foresaw leads to, it is the record that is broken
            faults.report(path, number, f"cannot be read ({type(error).__name__}: {error})"[:300])
        else:
            for row in rows:
                faults.look_for_unknown(path, number, row.items)
            yield from rows


_HALF = re.compile("[\ud800-\udfff]")


def _check(row: Row, task: str | None) -> None:
    """Raises Broken for a row that no prompt or no answer can be made of."""
    if not isinstance(row.text, str) or not row.text.strip():
        raise Broken("the text is blank")
    spans = [part for item in row.items for part in item]
    if not all(isinstance(part, str) and part for part in spans):
        raise Broken(f"the items {shown(row.items)} hold something else than text that is not empty")
    for part in (row.text, row.id or "", *spans):
        if half := _HALF.search(part):
            raise Broken(f"{half[0]!r} is half a character (a lone surrogate), which is no text: {shown(part)}")
        if "\0" in part:
            raise Broken(f"a NUL character, which is no text (a file in UTF-16?): {shown(part)}")
    if task is None:
        return
    fields = TASKS[task].item_fields
    if any(len(item) != len(fields) for item in row.items) or (task == "classification" and len(row.items) != 1):
        wanted = "one label" if task == "classification" else f"items [{', '.join(fields)}]"
        raise Broken(f"the items are {shown(list(row.items))}, but the task {task} needs {wanted}")
    if task == "multilabel" and len(set(row.items)) < len(row.items):
        raise Broken(f"a label stands twice in {shown([item[0] for item in row.items])}")


def numbered_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a data file; a line that is not UTF-8 is a fault."""
    with open_binary(path) as file:
        yield from text_lines(file, lambda line, problem: faults.report(path, line, problem))


def numbered_objects(path: Path, faults: Faults) -> Iterator[tuple[int, object]]:
    """(line number, value) of a JSON-lines data file; a line that is not JSON is a fault."""
    with open_binary(path) as file:
        yield from json_lines(file, lambda line, problem: faults.report(path, line, problem))


def open_binary(path: Path) -> BinaryIO:
    """`path` opened for reading bytes. Raises InputError when that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot read the data file ({error.strerror})") from error
