"""The rows of a CSV file, each with the number of its first line; a quotation mark in a wrong place costs one row."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator

from anit_ds.data.corpora.reading import Broken

Cells = list[str]


def csv_rows(
    lines: Iterator[tuple[int, str]], *, delimiter: str = ",", is_row: Callable[[str], bool] = lambda line: False
) -> Iterator[tuple[int, Cells | Broken]]:
    """(number of its first line, cells) of each row that is not blank, or what is wrong with that line.

    A quotation mark that is closed in the wrong place or never, or around lines of which `is_row` says that they are
    rows themselves, breaks its line alone: the rows behind it are read. A cell has as many lines as it likes, and up to
    131,072 characters (the csv module's limit).
    """
    waiting: deque[tuple[int, str]] = deque()
    while waiting or (waiting := deque(_next(lines))):
        taken: list[str] = []
        cells = _cells(_taking(taken, waiting, lines), taken, delimiter, is_row)
        number = waiting[0][0]
        for _ in range(1 if isinstance(cells, Broken) else len(taken)):
            waiting.popleft()
        if cells:
            yield number, cells


def _taking(taken: list[str], waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Line after line, those that wait first, as the csv module asks for them until a row is whole."""
    while True:
        if len(taken) == len(waiting):
            waiting.extend(_next(lines))
        if len(taken) == len(waiting):
            return
        taken.append(waiting[len(taken)][1])
        yield taken[-1] + "\n"


def _next(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    line = next(lines, None)
    return [] if line is None else [line]


def _cells(lines: Iterator[str], taken: list[str], delimiter: str, is_row: Callable[[str], bool]) -> Cells | Broken:
    """The cells of the row that begins with the first of `lines`; those that it consists of are then in `taken`."""
    try:
        cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return Broken(_what_is_wrong(str(error)))
    if any(map(is_row, taken[1:])):
        return Broken(f"a quotation mark opens here and swallows {len(taken) - 1} lines, rows among them")
    return cells


def _what_is_wrong(error: str) -> str:
    if "unexpected end of data" in error:
        return "a quotation mark opens here that is not closed, so the lines behind it are not read in"
    if "field limit" in error:  # what a mark that is not closed comes to in a large file, too
        most = csv.field_size_limit()
        return f"a cell that begins here has more than {most:,} characters; is a quotation mark not closed?"
    return f"no row of a CSV file ({error}); a quotation mark inside a quoted field is written twice"
