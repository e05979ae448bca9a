"""ASTE-Data-V2: `sentence####[([aspect tokens], [opinion tokens], 'POS'), ...]`, a token being its position."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows
from anit_ds.data.examples import Item
from anit_ds.errors import shown

SENTIMENTS = ("POS", "NEG", "NEU")


def read_aste(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows with items (sentiment, aspect, opinion); a line of another form is broken."""
    lines = (numbered for numbered in numbered_lines(path, faults) if numbered[1].strip())
    yield from read_rows(lines, _row, path, faults)


def _row(line: str) -> Row:
    sentence, separator, triplets = line.rpartition("####")
    if not separator or not sentence.strip():
        raise Broken("expected a sentence, #### and its triplets")
    return Row(sentence, _items(triplets.strip(), sentence.split(" ")))


def _items(text: str, words: list[str]) -> tuple[Item, ...]:
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's, of its own style
            triplets = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Broken(f"the triplets are not a Python list: {text[:80]!r}") from None
    if not isinstance(triplets, list):
        raise Broken(f"the triplets are not a list: {text[:80]!r}")
    return tuple(_item(triplet, words) for triplet in triplets)


def _item(triplet: object, words: list[str]) -> Item:
    if not isinstance(triplet, tuple) or len(triplet) != 3 or triplet[2] not in SENTIMENTS:
        raise Broken(f"a triplet is ([aspect tokens], [opinion tokens], one of {SENTIMENTS}), not {shown(triplet)}")
    return str(triplet[2]), _span(triplet[0], words), _span(triplet[1], words)


def _span(positions: object, words: list[str]) -> str:
    in_range = isinstance(positions, list) and all(type(p) is int and 0 <= p < len(words) for p in positions)
    if not isinstance(positions, list) or not in_range or not positions:
        raise Broken(f"token positions {shown(positions)} are not in the sentence's {len(words)} tokens")
    return " ".join(words[position] for position in positions)
