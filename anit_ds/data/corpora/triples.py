"""NYT24 and WebNLG in the form CasRel made common: `{"text": ..., "triple_list": [[head, relation, tail], ...]}`.

The objects stand in one JSON array, or one per line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from anit_ds.data.corpora.jsonfile import json_objects
from anit_ds.data.corpora.reading import Broken, Faults, Row, read_rows
from anit_ds.data.examples import Item
from anit_ds.errors import shown


def read_triples(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows of a file of triples, with items (relation, head, tail); an object of another form is broken.

    Raises InputError for an array that is not whole: what follows a syntax error in it cannot be read.
    """
    yield from read_rows(json_objects(path, faults), triple_row, path, faults)


def triple_row(fields: object) -> Row:
    """The row of one object. Raises Broken saying what is wrong with it."""
    if not isinstance(fields, Mapping):
        raise Broken(f'expected an object with "text" and "triple_list", found {shown(fields)}')
    text, triples = fields.get("text"), fields.get("triple_list")
    if not isinstance(text, str) or not text.strip():
        raise Broken('no "text" (a string that is not blank)')
    if not isinstance(triples, list):
        raise Broken('no "triple_list" (a list of [head, relation, tail])')
    items: list[Item] = []
    for triple in triples:
        if not _is_triple(triple):
            raise Broken(f'"triple_list" holds {shown(triple)}, not [head, relation, tail]')
        head, relation, tail = triple
        items.append((relation, head, tail))
    return Row(text, tuple(items))


def _is_triple(triple: object) -> bool:
    return isinstance(triple, list) and len(triple) == 3 and all(isinstance(t, str) and t.strip() for t in triple)
