"""The project's own format, for data of any task: one JSON object per line.

`{"text": ..., "label": ...}` for classification, `{"text": ..., "items": [[...], ...]}` for the other tasks with
items as in `anit_ds.data.examples.Item`; an optional "id" names the example, else it is counted. Blank lines are
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from anit_ds.data.corpora.reading import Faults, Row, numbered_lines
from anit_ds.data.examples import Item


def read_jsonl(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows of a JSON-lines file; a line that is no such object, or has no text or no label or items, is broken."""
    for number, line in numbered_lines(path, faults):
        if not line.strip():
            continue
        row = _row(line)
        if isinstance(row, str):
            faults.report(path, number, row)
        else:
            yield row


def _row(line: str) -> Row | str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({getattr(error, 'msg', 'nested too deeply')})"
    return object_row(fields)


def object_row(fields: object) -> Row | str:
    """The row of one object, or what is wrong with it."""
    if not isinstance(fields, Mapping):
        return f'expected a JSON object such as {{"text": ..., "label": ...}}, found {type(fields).__name__}'
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        return 'no "text" (a string that is not blank)'
    items = _items(fields)
    if isinstance(items, str):
        return items
    id = fields.get("id")
    return Row(text, items, None if id is None else str(id))


def _items(fields: Mapping[str, object]) -> tuple[Item, ...] | str:
    if "label" in fields:
        label = fields["label"]
        if isinstance(label, int) and not isinstance(label, bool):
            label = str(label)
        return ((label,),) if isinstance(label, str) and label else f'"label" is {label!r}, not a string or a number'
    if "items" not in fields:
        return 'no "label" (classification) and no "items" (the other tasks)'
    items = fields["items"]
    if not isinstance(items, list):
        return f'"items" is {items!r}, not a list of lists of strings'
    for item in items:
        if not isinstance(item, list) or not item or not all(isinstance(part, str) and part.strip() for part in item):
            return f'"items" holds {item!r}, not a list of strings that are not blank'
    return tuple(tuple(item) for item in items)
