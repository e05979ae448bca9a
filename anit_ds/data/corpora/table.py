"""A table of one's own, whatever file it is in: CSV, TSV, JSON, JSON lines, Parquet or Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from anit_ds.config import Columns
from anit_ds.data.corpora.columns import row_of
from anit_ds.data.corpora.csvfile import csv_rows
from anit_ds.data.corpora.jsonfile import json_objects
from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows
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
        # Quotation marks are plain characters here: a tab cannot stand inside a cell.
        lines = numbered_lines(path, faults)
        yield from _with_header(path, ((number, line.split("\t")) for number, line in lines if line))
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


def _with_header(path: Path, rows: Iterator[tuple[int, list[str] | Broken]]) -> Iterator[tuple[int, object]]:
    number, header = next(rows, (1, []))
    if isinstance(header, Broken) or not all(name.strip() for name in header) or not header:
        raise InputError(f"{path}:{number}: the first line must name the columns, it says {shown(header)}")
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise InputError(f"{path}:{number}: two columns have one name: {', '.join(names)}")
    for number, cells in rows:
        if isinstance(cells, list) and len(cells) != len(names):
            yield number, Broken(f"{len(cells)} cells where the header names {len(names)} columns")
        else:
            yield number, cells if isinstance(cells, Broken) else dict(zip(names, cells, strict=True))
