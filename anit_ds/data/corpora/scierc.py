"""SciERC: one document per line, with sentences as tokens and relations as document-level inclusive token spans.

Every sentence becomes an example, also one without a relation. A document is read whole or left out whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from anit_ds.data.corpora.reading import Faults, Row, numbered_lines
from anit_ds.data.examples import Item


def read_scierc(path: Path, faults: Faults) -> Iterator[Row]:
    """Sentences with items (relation, head, tail), named `document.sentence`, both counted from 0."""
    document = 0
    for number, line in numbered_lines(path, faults):
        if not line.strip():
            continue
        try:
            rows = document_rows(json.loads(line), document)
        except (ValueError, RecursionError) as error:
            faults.report(path, number, str(error) or "nested too deeply")
            continue
        document += 1
        yield from rows


def document_rows(fields: object, document: int) -> list[Row]:
    """The sentences of one document. Raises ValueError saying what is wrong with it."""
    if not isinstance(fields, Mapping) or not isinstance(fields.get("sentences"), list):
        raise ValueError('expected a document with "sentences" (lists of tokens)')
    sentences, relations = fields["sentences"], fields.get("relations")
    if not isinstance(relations, list) or len(relations) != len(sentences):
        raise ValueError('"relations" must be a list with one list for each sentence')
    tokens = list(chain.from_iterable(sentences))
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError('"sentences" must hold lists of strings')
    return [
        Row(" ".join(sentence), tuple(_item(relation, tokens) for relation in own), f"{document}.{number}")
        for number, (sentence, own) in enumerate(zip(sentences, relations, strict=True))
        if sentence
    ]


def _item(relation: object, tokens: list[str]) -> Item:
    if not isinstance(relation, list) or len(relation) != 5:
        raise ValueError(f"a relation is [head start, head end, tail start, tail end, type], not {relation!r}")
    head_start, head_end, tail_start, tail_end = map(int, relation[:4])
    for start, end in ((head_start, head_end), (tail_start, tail_end)):
        if not 0 <= start <= end < len(tokens):
            raise ValueError(f"{relation!r}: tokens {start} to {end} are not in the document's {len(tokens)} tokens")
    head, tail = tokens[head_start : head_end + 1], tokens[tail_start : tail_end + 1]
    return str(relation[4]), " ".join(head), " ".join(tail)
