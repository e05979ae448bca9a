"""A table of one's own, whatever file it is in: CSV, TSV, JSON, JSON lines, Parquet or Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anit_ds.config import Columns
from anit_ds.data.corpora.columns import row_of
from anit_ds.data.corpora.csvfile import csv_rows
from anit_ds.data.corpora.jsonfile import json_objects
from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, open_binary, read_rows
from anit_ds.data.corpora.streams import stream_of
from anit_ds.errors import InputError, shown

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")


def read_table(path: Path, faults: Faults, columns: Columns) -> Iterator[Row]:
    """Rows of a table, by the columns that are named. Raises InputError for a file that is none."""
    yield from read_rows(records(path, faults), row_of(columns, faults.task), path, faults)


def records(path: Path, faults: Faults) -> Iterator[tuple[int, object]]:
    """(line or row, from 1, and the record) of a file, by its ending. A record is a mapping from columns to values, or
    what is wrong with it."""
    ending = path.suffix.lower()
    if ending == ".csv":
        yield from _with_header(path, _csv(path, faults))
    elif ending == ".tsv":
        lines = numbered_lines(path, faults)
        yield from _with_header(path, ((number, [*map(_unquoted, line.split("\t"))]) for number, line in lines if line))
    elif ending in (".jsonl", ".ndjson", ".json"):
        yield from json_objects(path, faults)
    elif ending in (".parquet", ".arrow"):
        yield from stream_of(path)
    else:
        raise InputError(f"{path}: a table's name ends with {', '.join(ENDINGS)}")


def _csv(path: Path, faults: Faults) -> Iterator[tuple[int, list[str] | Broken]]:
    """The rows of a CSV, of which the header says whether commas or semicolons are between the cells."""
    header = next(numbered_lines(path, Faults("skip")), (1, ""))[1]
    return csv_rows(numbered_lines(path, faults), delimiter=max(",;\t", key=header.count))


def _unquoted(cell: str) -> str:
    """A cell of a TSV, where quotation marks are plain characters, for a tab cannot stand inside a cell; but for one
    that is plainly quoted as in a CSV, which is how pandas writes a cell with quotation marks in it."""
    inside = cell[1:-1]
    quoted = len(cell) > 3 and cell[0] == cell[-1] == '"' and '""' in inside and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else cell


def _with_header(path: Path, rows: Iterator[tuple[int, list[str] | Broken]]) -> Iterator[tuple[int, object]]:
    with open_binary(path) as file:
        try:
            file.readline().decode("utf-8-sig")
        except UnicodeDecodeError as error:  # never left out: the next line would name the columns
            raise InputError(
                f"{path}:1: the first line is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error
    number, header = next(rows, (1, []))
    # A first column without a name is the row numbers that pandas writes.
    numbered = isinstance(header, list) and len(header) > 1 and not header[0].strip()
    names = [] if isinstance(header, Broken) else [name.strip() for name in header[numbered:]]
    if not names or not all(names):
        raise InputError(f"{path}:{number}: the first line must name the columns, it says {shown(header)}")
    if len(set(names)) < len(names):
        raise InputError(f"{path}:{number}: two columns have one name: {', '.join(names)}")
    for number, cells in rows:
        if isinstance(cells, Broken):
            yield number, cells
        elif len(cells) != len(names) + numbered:
            yield number, Broken(f"{len(cells)} cells where the header names {len(names) + numbered} columns")
        else:
            yield number, dict(zip(names, cells[numbered:], strict=True))
