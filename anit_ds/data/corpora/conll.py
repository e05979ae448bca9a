"""Entities in columns: one token per line, a blank line between sentences (CoNLL-2003, WNUT-17, OntoNotes 5).

Tags are read as IOB1 and IOB2 alike: an entity begins at every B-, and at an I- that does not continue an entity of
its type. CoNLL-2012's `gold_conll` brackets its entities instead, and they may nest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from anit_ds.data.corpora.reading import Faults, Row, numbered_lines
from anit_ds.data.examples import Item

Span = tuple[str, int, int]
"""(type, first token, one past the last token)."""


def read_columns(path: Path, faults: Faults) -> Iterator[Row]:
    """Sentences of a file whose first column is the word and whose last is its IOB1 or IOB2 tag.

    Columns are separated by blanks or tabs; `-DOCSTART-` lines are left out. A sentence with a broken line is left
    out whole.
    """
    for _, sentence in _sentences(path, faults, word=0, tag=-1, columns=2, is_tag=_IOB.fullmatch):
        words, tags = zip(*sentence, strict=True)
        yield entity_row(words, iob_spans(tags))


def read_ontonotes(path: Path, faults: Faults) -> Iterator[Row]:
    """OntoNotes 5: CoNLL-2012 files (named *gold_conll) with bracketed entities, else columns that end in a tag."""
    if not path.name.endswith("gold_conll"):
        yield from read_columns(path, faults)
        return
    for line, sentence in _sentences(path, faults, word=3, tag=10, columns=11, is_tag=_BRACKETS.fullmatch):
        words, tags = zip(*sentence, strict=True)
        spans = bracket_spans(tags)
        if spans is None:
            faults.report(path, line, f"the entity brackets of the sentence {' '.join(words)[:80]!r} do not match")
        else:
            yield entity_row(words, spans)


def entity_row(words: Sequence[str], spans: Iterable[Span]) -> Row:
    """A sentence of space-separated words and its entities in order of appearance, outer before inner."""
    ordered = sorted(spans, key=lambda span: (span[1], -span[2]))
    items: list[Item] = [(kind, " ".join(words[start:end])) for kind, start, end in ordered]
    return Row(" ".join(words), tuple(items))


_IOB = re.compile(r"O|[BI]-\S+")
_BRACKETS = re.compile(r"(?:\([^()*\s]+)*\*?\)*")


def iob_spans(tags: Sequence[str]) -> list[Span]:
    """The entities that IOB1 or IOB2 tags mark."""
    spans: list[Span] = []
    kind, start = "", 0
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            spans.append((kind, start, position))
            kind = ""
        if prefix != "O" and not kind:
            kind, start = own, position
    return spans


def bracket_spans(tags: Sequence[str]) -> list[Span] | None:
    """The entities of gold_conll's column, such as `(ORG*`, `*)`, `(GPE)`; None when brackets do not match."""
    spans: list[Span] = []
    open_ones: list[tuple[str, int]] = []
    for position, tag in enumerate(tags):
        open_ones += [(kind, position) for kind in re.findall(r"\(([^()*]+)", tag)]
        for _ in range(tag.count(")")):
            if not open_ones:
                return None
            kind, start = open_ones.pop()
            spans.append((kind, start, position + 1))
    return None if open_ones else spans


def _sentences(
    path: Path, faults: Faults, *, word: int, tag: int, columns: int, is_tag: Callable[[str], object]
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(number of the first line, [(word, tag), ...]) of each sentence.

    A sentence with a line that is not of this form is reported once and left out.
    """
    sentence: list[tuple[str, str]] = []
    broken, first = False, 1
    for number, line in numbered_lines(path, faults):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-" or line.startswith(("#begin document", "#end document")):
            if sentence and not broken:
                yield first, sentence
            sentence, broken, first = [], False, number + 1
        elif broken:
            continue
        elif len(cells) < columns:
            faults.report(path, number, f"{len(cells)} columns where at least {columns} were expected: {line!r}")
            broken = True
        elif not is_tag(cells[tag]):
            faults.report(path, number, f"{cells[tag]!r} is not an entity tag of this format: {line!r}")
            broken = True
        else:
            sentence.append((cells[word], cells[tag]))
    if sentence and not broken:
        yield first, sentence
