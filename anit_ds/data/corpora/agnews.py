"""AG News: CSV with the columns class (1 to 4), title and description, with or without a header."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows

CLASSES = ("1", "2", "3", "4")
"""World, Sports, Business, Sci/Tech."""

_MOST_LINES = 50
"""Lines of one row: a quotation mark that is not closed by then is a mistake."""


def read_agnews(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows whose text is title and description on one line; another number of columns or class is broken.

    So is a quotation mark that is closed in the wrong place or never, or around lines that are rows themselves: its
    line is broken, and the rows behind it are read.
    """
    yield from read_rows(_records(numbered_lines(path, faults)), _row, path, faults)


def _row(cells: list[str] | Broken) -> Row:
    if isinstance(cells, Broken):
        raise cells
    if len(cells) != 3:
        raise Broken(f"{len(cells)} columns where class, title and description were expected")
    if cells[0] not in CLASSES:
        raise Broken(f"class {cells[0][:40]!r} is not one of {', '.join(CLASSES)}")
    text = re.sub(r"[ \t\r\n]+", " ", f"{cells[1]} {cells[2]}").strip(" ")
    if not text.strip():
        raise Broken("title and description are blank")
    return Row(text, ((cells[0],),))


def _records(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str] | Broken]]:
    """(number of its first line, cells) of each row but a header, or what is wrong with the first line."""
    waiting: deque[tuple[int, str]] = deque()
    while waiting or (waiting := deque(_next(lines))):
        taken = 0
        cells: list[str] | Broken | None = None
        while cells is None:
            taken += 1
            if taken > len(waiting):
                waiting.extend(_next(lines))
            if taken > len(waiting) or taken > _MOST_LINES:
                cells = Broken("a quotation mark opens here that is not closed, so the lines behind it are not read in")
            else:
                cells = _cells([line for _, line in waiting][:taken])
        number = waiting[0][0]
        for _ in range(1 if isinstance(cells, Broken) else taken):
            waiting.popleft()
        if cells and not (number == 1 and isinstance(cells, list) and _is_header(cells)):
            yield number, cells


def _next(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    line = next(lines, None)
    return [] if line is None else [line]


def _is_header(cells: list[str]) -> bool:
    return not cells[0].isdigit() and "class" in cells[0].lower()


def _cells(lines: list[str]) -> list[str] | Broken | None:
    """The cells of a row that these lines are; None where its last quotation mark is still open."""
    try:
        rows = list(csv.reader([line + "\n" for line in lines], strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        return Broken(f"no row of a CSV file ({error}); a quotation mark inside a quoted field is written twice")
    if any(re.match(r'"?[1-4]"?,', line) for line in lines[1:]):
        return Broken(f"a quotation mark opens here and swallows {len(lines) - 1} lines, rows among them")
    return rows[0] if rows else []
