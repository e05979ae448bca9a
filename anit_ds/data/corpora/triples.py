"""NYT24 and WebNLG in the form CasRel made common: `{"text": ..., "triple_list": [[head, relation, tail], ...]}`.

The objects stand in one JSON array, or one per line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anit_ds.data.corpora.reading import Faults, Row, open_binary
from anit_ds.data.examples import Item


def read_triples(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows of a file of triples, with items (relation, head, tail); an object of another form is broken."""
    for line, fields in _objects(path, faults):
        row = triple_row(fields)
        if isinstance(row, str):
            faults.report(path, line, row)
        else:
            yield row


def triple_row(fields: object) -> Row | str:
    """The row of one object, or what is wrong with it."""
    if not isinstance(fields, Mapping):
        return f'expected an object with "text" and "triple_list", found {fields!r:.80}'
    text, triples = fields.get("text"), fields.get("triple_list")
    if not isinstance(text, str) or not text.strip():
        return 'no "text" (a string that is not blank)'
    if not isinstance(triples, list):
        return 'no "triple_list" (a list of [head, relation, tail])'
    items: list[Item] = []
    for triple in triples:
        if not _is_triple(triple):
            return f'"triple_list" holds {triple!r}, not [head, relation, tail]'
        head, relation, tail = triple
        items.append((relation, head, tail))
    return Row(text, tuple(items))


def _is_triple(triple: object) -> bool:
    return isinstance(triple, list) and len(triple) == 3 and all(isinstance(t, str) and t.strip() for t in triple)


def _objects(path: Path, faults: Faults) -> Iterator[tuple[int, Any]]:
    """(line on which it begins, value) of each object. What follows a syntax error in an array cannot be read."""
    with open_binary(path) as file:
        text = file.read().decode("utf-8-sig", errors="replace")
    decoder = json.JSONDecoder()
    position, line, counted = 0, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,[]":
            position += 1
        if position == len(text):
            return
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            at = getattr(error, "lineno", line)
            faults.report(path, at, f"not valid JSON ({getattr(error, 'msg', 'nested too deeply')})")
            return
        yield line, value
