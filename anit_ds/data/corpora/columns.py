"""From a record of a table of one's own to a row: which column is the text, and what says the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anit_ds.config import Columns
from anit_ds.data.corpora.jsonl import label_text, object_row
from anit_ds.data.corpora.reading import Broken, Row
from anit_ds.data.examples import Item
from anit_ds.errors import shown

_ENTITY = 'an entity is {"start": 0, "end": 3, "label": "PER"} or [0, 3, "PER"], in characters of the text'


def row_of(columns: Columns) -> Callable[[object], Row]:
    """A parser of records for these columns; it raises Broken saying what is wrong with one."""

    def parse(record: object) -> Row:
        if isinstance(record, Broken):
            raise record
        if not isinstance(record, Mapping):
            raise Broken(f"expected an object with columns, found {type(record).__name__}")
        fields = {"text": _text(record, columns.text)}
        if columns.id is not None:
            fields["id"] = _column(record, columns.id)
        if columns.entities is not None:
            items = _entities(fields["text"], _column(record, columns.entities))
            return Row(fields["text"], items, object_row({**fields, "items": []}).id)
        if columns.items is not None:
            fields["items"] = _json(_column(record, columns.items))
        elif columns.label is not None or "items" not in record:
            fields["label"] = _label(_column(record, columns.label or "label"))
        else:
            fields["items"] = _json(record["items"])
        return object_row(fields)

    return parse


def _column(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise Broken(f"no column is called {shown(name)}; there are {', '.join(map(str, record))}")
    return record[name]


def _text(record: Mapping[str, Any], names: str | Sequence[str]) -> str:
    """The column's text, or several columns' with a blank between them."""
    parts = [_column(record, name) for name in ([names] if isinstance(names, str) else names)]
    for part in parts:
        if part is not None and not isinstance(part, str):
            raise Broken(f"the text is {shown(part)}, not text")
    return " ".join(part for part in parts if part and part.strip())


def _label(value: Any) -> str:
    """Words as they are; 1, 1.0 and true as "1", "1" and "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "":
        raise Broken("no label")
    return label_text(value.strip() if isinstance(value, str) else value)


def _json(value: Any) -> Any:
    """The value, or what a cell holds as JSON; an empty cell is an empty list."""
    if not isinstance(value, str):
        return [] if value is None else value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise Broken(f"the cell {shown(value)} is no JSON") from error


def _entities(text: str, value: Any) -> tuple[Item, ...]:
    """(label, span) of each entity given by its place in the text, by where they begin."""
    given = _json(value)
    if not isinstance(given, list):
        raise Broken(f"the entities are {shown(given)}, not a list; {_ENTITY}")
    found = []
    for entity in given:
        if isinstance(entity, Mapping):
            entity = [entity.get(key) for key in ("start", "end", "label")]
        if not (isinstance(entity, list | tuple) and len(entity) == 3):
            raise Broken(f"{shown(entity)} is no entity; {_ENTITY}")
        start, end, label = entity
        if not (type(start) is type(end) is int and isinstance(label, str) and label.strip()):
            raise Broken(f"{shown(entity)} is no entity; {_ENTITY}")
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise Broken(f"the entity {shown(entity)} lies outside of its text, which has {len(text)} characters")
        found.append((start, end, label))
    return tuple((label.strip(), text[start:end]) for start, end, label in sorted(found))
