"""SST-2: tab-separated with a header that names the columns `sentence` and `label` (GLUE's files and its kin).

GLUE's test.tsv carries no labels; `has_labels` tells, and the validation split then serves as the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows
from anit_ds.errors import InputError, shown

_LABELS = {"0", "1"}


def read_sst2(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows of a TSV. Raises InputError when the header lacks a column; a line with other labels than 0, 1 is broken."""
    lines = numbered_lines(path, faults)
    columns = next(lines, (1, ""))[1].split("\t")
    if not {"sentence", "label"} <= set(columns):
        raise InputError(f"{path}:1: the header must name the columns sentence and label, it says {shown(columns)}")
    sentence, label = columns.index("sentence"), columns.index("label")

    def row(line: str) -> Row:
        # Quotes are plain characters in these files, so this is no dialect of CSV.
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise Broken(f"{len(cells)} tab-separated columns where the header names {len(columns)}")
        if cells[label] not in _LABELS:
            raise Broken(f"label {cells[label][:40]!r} is neither 0 (negative) nor 1 (positive)")
        if not cells[sentence].strip():
            raise Broken("the sentence is blank")
        return Row(cells[sentence].strip(" "), ((cells[label],),))

    yield from read_rows((numbered for numbered in lines if numbered[1]), row, path, faults)


def has_labels(path: Path) -> bool:
    """Whether the header names a label column."""
    _, header = next(numbered_lines(path, Faults("skip")), (1, ""))
    return "label" in header.split("\t")
