"""The project's own format, for data of any task: one JSON object per line.

`{"text": ..., "label": ...}` for classification, with a list of labels for multilabel, `{"text": ..., "items": [[...],
...]}` for the other tasks with items as in `anit_ds.data.examples.Item`; an optional "id" names the example, else it is
counted. Blank lines are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_objects, read_rows
from anit_ds.data.examples import Item
from anit_ds.errors import shown


def read_jsonl(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows of a JSON-lines file; a line that is no such object, or has no text or no label or items, is broken."""
    yield from read_rows(numbered_objects(path, faults), object_row, path, faults)


def object_row(fields: object) -> Row:
    """The row of one object. Raises Broken saying what is wrong with it."""
    if not isinstance(fields, Mapping):
        raise Broken(f'expected a JSON object such as {{"text": ..., "label": ...}}, found {type(fields).__name__}')
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Broken('no "text" (a string that is not blank)')
    id = fields.get("id")
    if not isinstance(id, str | int | None) or isinstance(id, bool):
        raise Broken(f'"id" is {shown(id)}, neither a string nor a whole number')
    return Row(text, _items(fields), None if id is None or id == "" else str(id))


def _items(fields: Mapping[str, object]) -> tuple[Item, ...]:
    label = fields.get("label")
    if label is not None:
        return tuple((label_text(one),) for one in (label if isinstance(label, list) else [label]))
    if "items" not in fields:
        raise Broken('no "label" (classification, multilabel) and no "items" (the other tasks)')
    items = fields["items"]
    if not isinstance(items, list):
        raise Broken(f'"items" is {shown(items)}, not a list of lists of strings')
    for item in items:
        if not isinstance(item, list) or not item or not all(isinstance(part, str) and part.strip() for part in item):
            raise Broken(f'"items" holds {shown(item)}, not a list of strings that are not blank')
    return tuple(tuple(item) for item in items)


def label_text(label: object) -> str:
    """A label that is one as text. Raises Broken for what is neither a string nor a whole number."""
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str) or not label:
        raise Broken(f'"label" is {shown(label)}, not a string or a whole number')
    return label
