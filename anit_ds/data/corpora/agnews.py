"""AG News: CSV with the columns class (1 to 4), title and description, with or without a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.csvfile import csv_rows
from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows

CLASSES = ("1", "2", "3", "4")
"""World, Sports, Business, Sci/Tech."""
_BEGINS = re.compile(r'"?[1-4]"?,')


def read_agnews(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows whose text is title and description on one line; another number of columns or class is broken.

    So is a quotation mark that is closed in the wrong place or never, or around lines that are rows themselves: its
    line is broken, and the rows behind it are read.
    """
    rows = csv_rows(numbered_lines(path, faults), is_row=lambda line: _BEGINS.match(line) is not None)
    yield from read_rows((row for row in rows if not _is_header(*row)), _row, path, faults)


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


def _is_header(number: int, cells: list[str] | Broken) -> bool:
    return number == 1 and isinstance(cells, list) and not cells[0].isdigit() and "class" in cells[0].lower()
