"""The rows of a CSV file, each with the number of its first line; a quotation mark in a wrong place costs one row."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator

from anit_ds.data.corpora.reading import Broken

Cells = list[str]
_MOST_LINES = 50
"""Lines of one row: a quotation mark that is not closed by then is a mistake."""


def csv_rows(
    lines: Iterator[tuple[int, str]], *, delimiter: str = ",", is_row: Callable[[str], bool] = lambda line: False
) -> Iterator[tuple[int, Cells | Broken]]:
    """(number of its first line, cells) of each row that is not blank, or what is wrong with that line.

    A quotation mark that is closed in the wrong place or never, or around lines of which `is_row` says that they are
    rows themselves, breaks its line alone: the rows behind it are read.
    """
    waiting: deque[tuple[int, str]] = deque()
    while waiting or (waiting := deque(_next(lines))):
        taken = 0
        cells: Cells | Broken | None = None
        while cells is None:
            taken += 1
            if taken > len(waiting):
                waiting.extend(_next(lines))
            if taken > len(waiting) or taken > _MOST_LINES:
                cells = Broken("a quotation mark opens here that is not closed, so the lines behind it are not read in")
            else:
                cells = _cells([line for _, line in waiting][:taken], delimiter, is_row)
        number = waiting[0][0]
        for _ in range(1 if isinstance(cells, Broken) else taken):
            waiting.popleft()
        if cells:
            yield number, cells


def _next(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    line = next(lines, None)
    return [] if line is None else [line]


def _cells(lines: list[str], delimiter: str, is_row: Callable[[str], bool]) -> Cells | Broken | None:
    """The cells of a row that these lines are; None where its last quotation mark is still open."""
    try:
        rows = list(csv.reader([line + "\n" for line in lines], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        return Broken(f"no row of a CSV file ({error}); a quotation mark inside a quoted field is written twice")
    if any(map(is_row, lines[1:])):
        return Broken(f"a quotation mark opens here and swallows {len(lines) - 1} lines, rows among them")
    return rows[0] if rows else []
