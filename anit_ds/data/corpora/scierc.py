"""SciERC: one document per line, with sentences as tokens and relations as document-level inclusive token spans.

Every sentence becomes an example, also one without a relation. A document is read whole or left out whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_objects, read_rows
from anit_ds.data.examples import Item
from anit_ds.errors import shown


def read_scierc(path: Path, faults: Faults) -> Iterator[Row]:
    """Sentences with items (relation, head, tail), named `document.sentence`, both counted from 0."""
    yield from read_rows(numbered_objects(path, faults), DocumentParser(), path, faults)


class DocumentParser:
    """The sentences of one document after another; a broken one is not counted."""

    def __init__(self) -> None:
        self._documents = count()

    def __call__(self, fields: object) -> list[Row]:
        """Raises Broken saying what is wrong with the document."""
        sentences, relations = _lists(fields)
        tokens = list(chain.from_iterable(sentences))
        items = [tuple(_item(relation, tokens) for relation in own) for own in relations]
        document = next(self._documents)
        return [
            Row(" ".join(sentence), own, f"{document}.{number}")
            for number, (sentence, own) in enumerate(zip(sentences, items, strict=True))
            if sentence
        ]


def _lists(fields: object) -> tuple[list[list[str]], list[list[object]]]:
    """A document's sentences and relations, their types checked."""
    sentences = fields.get("sentences") if isinstance(fields, Mapping) else None
    if not isinstance(fields, Mapping) or not isinstance(sentences, list):
        raise Broken('expected a document with "sentences" (lists of tokens)')
    for sentence in sentences:
        if not isinstance(sentence, list) or not all(isinstance(token, str) and token for token in sentence):
            raise Broken(f'"sentences" must hold lists of tokens, not {shown(sentence)}')
    relations = fields.get("relations")
    if not isinstance(relations, list) or len(relations) != len(sentences):
        raise Broken('"relations" must be a list with one list for each sentence')
    for own in relations:
        if not isinstance(own, list):
            raise Broken(f'"relations" must hold one list for each sentence, not {shown(own)}')
    return sentences, relations


def _item(relation: object, tokens: list[str]) -> Item:
    if not isinstance(relation, list) or len(relation) != 5 or not isinstance(relation[4], str) or not relation[4]:
        raise Broken(f"a relation is [head start, head end, tail start, tail end, type], not {shown(relation)}")
    places, kind = relation[:4], relation[4]
    if not all(type(place) is int for place in places):
        raise Broken(f"{shown(relation)}: token positions are whole numbers")
    for start, end in (places[:2], places[2:]):
        if not 0 <= start <= end < len(tokens):
            raise Broken(f"{shown(relation)}: tokens {start} to {end} are not in the document's {len(tokens)} tokens")
    head, tail = tokens[places[0] : places[1] + 1], tokens[places[2] : places[3] + 1]
    return kind, " ".join(head), " ".join(tail)
