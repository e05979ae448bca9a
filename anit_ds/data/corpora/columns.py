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

_YES_OR_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_ENTITY = 'an entity is {"start": 0, "end": 3, "label": "PER"} or [0, 3, "PER"], in characters of the text'


def row_of(columns: Columns, task: str | None) -> Callable[[object], Row]:
    """A parser of records for these columns; it raises Broken saying what is wrong with one. `task` says whether a cell
    of text has one label or several."""

    def parse(record: object) -> Row:
        if isinstance(record, Broken):
            raise record
        if not isinstance(record, Mapping):
            raise Broken(f"expected an object with columns, found {type(record).__name__}")
        fields: dict[str, Any] = {"text": _text(record, columns.text)}
        if columns.id is not None:
            fields["id"] = _column(record, columns.id)
        if columns.entities is not None:
            items = _entities(fields["text"], _column(record, columns.entities))
            return Row(fields["text"], items, object_row({**fields, "items": []}).id)
        if columns.items is not None:
            fields["items"] = _json(_column(record, columns.items))
        elif columns.label is None and "items" in record:
            fields["items"] = _json(record["items"])
        else:
            fields["label"] = _label_or_labels(record, columns, task)
        return object_row(fields)

    return parse


def text_alone(record: Mapping[str, Any], columns: Columns) -> str:
    """The text of a record without an answer: in the columns that training reads it from, or in `text`. Raises Broken
    for one that has neither."""
    own = [columns.text] if isinstance(columns.text, str) else columns.text
    names = own if set(own) <= record.keys() else ["text"]
    if not set(names) <= record.keys():
        other = "" if own == ["text"] else f", or with {' and '.join(map(json.dumps, own))} as in training"
        raise Broken(f'expected an object with a "text"{other}; it has {", ".join(map(str, record)) or "nothing"}')
    text = _text(record, names)
    if not text:
        raise Broken("the text is blank")
    return text


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


def _label_or_labels(record: Mapping[str, Any], columns: Columns, task: str | None) -> str | list[str]:
    if isinstance(columns.label, tuple):
        return [name for name in columns.label if _says_yes(record, name)]
    name = columns.label or "label"
    value = _column(record, name)
    if task == "multilabel" or columns.separator is not None:
        value = _several(name, value, columns.separator)
    return [_label(one) for one in value] if isinstance(value, list) else _label(value)


def _label(value: Any) -> str:
    """Words as they are; 1, 1.0 and true as "1", "1" and "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "":
        raise Broken("no label")
    return label_text(value.strip() if isinstance(value, str) else value)


def yes_or_no(value: Any) -> bool | None:
    """What a cell of 0 or 1 says; None where it holds anything else."""
    return _YES_OR_NO.get(str(value).strip().lower())


def _says_yes(record: Mapping[str, Any], name: str) -> bool:
    said = yes_or_no(_column(record, name))
    if said is None:
        raise Broken(f"{name}: {shown(record[name])} is neither 0 nor 1")
    return said


def _several(name: str, value: Any, separator: str | None) -> list[Any]:
    """The labels in one cell; an empty one has none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if separator is not None:
        if not isinstance(value, str):
            raise Broken(f"{name}: {shown(value)} is no text with {shown(separator)} between its labels")
        labels = [label.strip() for label in value.split(separator)]
        if not all(labels):
            raise Broken(f"{name}: an empty label between the {shown(separator)} of {shown(value)}")
        return labels
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value)
    if not isinstance(value, list):
        raise Broken(
            f'{name}: {shown(value)} is no list of labels such as ["a", "b"]; data.columns.separator says what stands '
            "between labels in text"
        )
    return value


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
    return tuple((label.strip(), text[start:end]) for start, end, label in sorted(set(found)))
