"""Entities in columns: one token per line, a blank line between sentences (CoNLL-2003, WNUT-17, OntoNotes 5).

Tags are read as IOB1 and IOB2 alike: an entity begins at every B-, and at an I- that does not continue an entity of
its type. CoNLL-2012's `gold_conll` brackets its entities instead, and they may nest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from anit_ds.data.corpora.reading import Broken, Faults, Row, numbered_lines, read_rows
from anit_ds.data.examples import Item
from anit_ds.errors import shown

Span = tuple[str, int, int]
"""(type, first token, one past the last token)."""
Sentence = list[tuple[str, str]]
"""(word, tag) of each token."""

NAMELESS = "documents without a single name"


def read_columns(path: Path, faults: Faults) -> Iterator[Row]:
    """Sentences of a file whose first column is the word and whose last is its IOB1 or IOB2 tag.

    `-DOCSTART-` lines are left out. A sentence with a broken line is left out whole.
    """
    sentences = _sentences(path, faults, word=0, tag=-1, columns=2, is_tag=_IOB.fullmatch)
    yield from read_rows(((line, sentence) for line, _, sentence in sentences), _iob_row, path, faults)


def read_ontonotes(path: Path, faults: Faults) -> Iterator[Row]:
    """OntoNotes 5: CoNLL-2012 files (named *gold_conll) with bracketed entities, else columns that end in a tag.

    In gold_conll a document without a single name has no layer of names (a third of the published files): it says
    nothing about names, so it is left out and counted.
    """
    if not path.name.endswith("gold_conll"):
        yield from read_columns(path, faults)
        return
    sentences = _sentences(path, faults, word=3, tag=10, columns=11, is_tag=_BRACKETS.fullmatch)
    for _, document in groupby(sentences, key=lambda of: of[1]):
        rows = list(read_rows(((line, sentence) for line, _, sentence in document), _bracket_row, path, faults))
        yield from with_names(rows, faults)


def with_names(document: list[Row], faults: Faults) -> list[Row]:
    """A document's sentences; none, and the document counted, where no sentence has an entity."""
    if any(row.items for row in document):
        return document
    if document:
        faults.leave_out(NAMELESS)
    return []


def split_columns(line: str) -> list[str]:
    """The columns of a line: cut at tabs where it has one, else at blanks.

    Only ASCII's blank and tab separate. A non-breaking or an ideographic blank is a part of a word, and so is a blank
    where tabs separate.
    """
    line = line.rstrip(" \t")
    if "\t" in line:
        return [cell.strip(" ") for cell in re.split("\t+", line)]
    return re.findall("[^ ]+", line)


def entity_row(words: Sequence[str], spans: Iterable[Span]) -> Row:
    """A sentence of space-separated words and its entities in order of appearance, outer before inner."""
    ordered = sorted(spans, key=lambda span: (span[1], -span[2]))
    items: list[Item] = [(kind, " ".join(words[start:end])) for kind, start, end in ordered]
    return Row(" ".join(words), tuple(items))


def _iob_row(sentence: Sentence) -> Row:
    words, tags = zip(*sentence, strict=True)
    return entity_row(words, iob_spans(tags))


def _bracket_row(sentence: Sentence) -> Row:
    words, tags = zip(*sentence, strict=True)
    spans = bracket_spans(tags)
    if spans is None:
        raise Broken(f"the entity brackets of the sentence {' '.join(words)[:80]!r} do not match")
    return entity_row(words, spans)


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
) -> Iterator[tuple[int, str, Sentence]]:
    """(number of the first line, name of the document, tokens) of each sentence.

    A sentence with a line that is not of this form is reported once and left out.
    """
    sentence: Sentence = []
    broken, first, document = False, 1, ""
    for number, line in numbered_lines(path, faults):
        cells = split_columns(line)
        begins = _BEGIN.match(line)
        if begins or not line.strip() or cells[0] == "-DOCSTART-" or line.startswith("#end document"):
            if sentence and not broken:
                yield first, document, sentence
            sentence, broken, first = [], False, number + 1
            document = begins[1] if begins else document
        elif broken:
            continue
        elif problem := _problem(cells, word, tag, columns, is_tag):
            faults.report(path, number, f"{problem}: {shown(line)}")
            broken = True
        else:
            sentence.append((cells[word], cells[tag]))
    if sentence and not broken:
        yield first, document, sentence


_BEGIN = re.compile(r"#begin document\s*\(?([^)]*)")


def _problem(cells: list[str], word: int, tag: int, columns: int, is_tag: Callable[[str], object]) -> str:
    """What is wrong with a token's line, or nothing."""
    if len(cells) < columns:
        return f"{len(cells)} columns where at least {columns} were expected"
    if not cells[word]:
        return "the column of the word is empty"
    return "" if is_tag(cells[tag]) else f"{cells[tag][:40]!r} is not an entity tag of this format"
