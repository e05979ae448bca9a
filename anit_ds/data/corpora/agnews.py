"""AG News: CSV with the columns class (1 to 4), title and description, with or without a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.reading import Faults, Row, numbered_lines

CLASSES = ("1", "2", "3", "4")
"""World, Sports, Business, Sci/Tech."""


def read_agnews(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows whose text is title and description on one line; another number of columns or class is broken."""
    reader = csv.reader(line + "\n" for _, line in numbered_lines(path, faults))
    first = 1
    for cells in reader:
        number, first = first, reader.line_num + 1
        if not cells or (number == 1 and not cells[0].isdigit() and "class" in cells[0].lower()):
            continue
        if len(cells) != 3:
            faults.report(path, number, f"{len(cells)} columns where class, title and description were expected")
        elif cells[0] not in CLASSES:
            faults.report(path, number, f"class {cells[0]!r} is not one of {', '.join(CLASSES)}")
        elif not (text := " ".join(" ".join(cells[1:]).split())):
            faults.report(path, number, "title and description are blank")
        else:
            yield Row(text, ((cells[0],),))
