r"""The grammar that answers share: `label; label`, `label: span; label: span, span`, and `None` for an empty set.

A span or label may hold the separators themselves: a backslash before `;` or `,` (or before a backslash) makes it part
of it. `\n` and `\r` stand for line breaks, because an answer is one line. What surrounds an answer is stripped on its
way, so `\s` stands for a blank at an end of a span, and `\u` with four hexadecimal digits for other white space there.
Everything here is linear in the answer's length and never raises on what a model says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from anit_ds.data.examples import Item
from anit_ds.errors import InputError

NONE = "None"
"""The answer for an empty set (docs/method.md section 1)."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer says: its items with raw labels, and how many further pieces could not be understood."""

    items: tuple[Item, ...]
    malformed: int = 0


class Task(Protocol):
    """One kind of answer. `words` maps a data set's raw labels to what the model says for them."""

    @property
    def name(self) -> str: ...

    @property
    def item_fields(self) -> tuple[str, ...]:
        """What the strings of an item are, the label first."""
        ...

    def render(self, items: Sequence[Item], words: Mapping[str, str]) -> str:
        """The answer for these items. Raises InputError for a label without words or an item of another shape."""
        ...

    def parse(self, answer: str, words: Mapping[str, str]) -> Parsed:
        """The items an answer states. Only its first line that is not blank counts. Never raises."""
        ...


@dataclass(frozen=True)
class SetTask:
    """A task whose answer is a set of items, each `label`, `label: span` or `label: span, span`."""

    name: str
    item_fields: tuple[str, ...]

    def render(self, items: Sequence[Item], words: Mapping[str, str]) -> str:
        return "; ".join([self._render_item(item, words) for item in items]) or NONE

    def _render_item(self, item: Item, words: Mapping[str, str]) -> str:
        if len(item) != len(self.item_fields) or not all(item):
            raise InputError(f"{item!r} is not an item of {self.name}: it needs {', '.join(self.item_fields)}")
        label = escape(words_of(item[0], words), self.label_separators)
        spans = [escape(span, self.separators) for span in item[1:]]
        return f"{label}: {', '.join(spans)}" if spans else label

    @property
    def separators(self) -> str:
        """What a backslash stands before inside a span."""
        return ";,"[: max(1, len(self.item_fields) - 1)]

    @property
    def label_separators(self) -> str:
        """What a backslash stands before inside a label's words."""
        return ":;" if len(self.item_fields) > 1 else ";"

    def parse(self, answer: str, words: Mapping[str, str]) -> Parsed:
        line = first_line(answer)
        if is_none(line):
            return Parsed(())
        label_of = LabelLookup(words)
        pieces = [piece for piece in split_unescaped(line, ";") if piece.strip()]
        parsed = [self._parse_item(piece, label_of) for piece in pieces]
        items = tuple(item for item in parsed if item is not None)
        return Parsed(items, malformed=max(len(pieces), 1) - len(items))

    def _parse_item(self, piece: str, label_of: LabelLookup) -> Item | None:
        if len(self.item_fields) == 1:
            alone = label_of.alone(unescape(piece))
            return None if alone is None else (alone,)
        head, *rest = split_unescaped(piece, ":", at_most=1)
        label = label_of(unescape(head))
        if label is None or not rest:
            return None
        spans = split_unescaped(rest[0], ",") if len(self.item_fields) > 2 else rest
        item = (label, *map(unescape, spans))
        return item if len(item) == len(self.item_fields) and all(item) else None


class LabelLookup:
    """From the words a model says to the raw label; case and a run of blanks make no difference."""

    def __init__(self, words: Mapping[str, str]) -> None:
        self._exact = {said: raw for raw, said in words.items()}
        self._folded = {fold(said): raw for raw, said in words.items()}

    def __call__(self, said: str) -> str | None:
        return self._exact.get(said, self._folded.get(fold(said)))

    def alone(self, said: str) -> str | None:
        """The raw label of words that stand alone, as a sentence does: a full stop may end them."""
        label = self(said)
        return self(said.removesuffix(".")) if label is None else label


def fold(words: str) -> str:
    """Words in the form in which two labels count as the same."""
    return " ".join(words.split()).casefold()


def words_of(label: str, words: Mapping[str, str]) -> str:
    """What the model says for a raw label. Raises InputError when the instructions do not know it."""
    try:
        return words[label]
    except KeyError:
        known = ", ".join(list(words)[:12]) + (", ..." if len(words) > 12 else "")
        raise InputError(f"label {label!r} has no words under `labels` in the instructions ({known})") from None


def first_line(answer: str) -> str:
    """The first line that is not blank: an untuned model goes on after its answer, and that is no answer."""
    return answer.lstrip().partition("\n")[0].rstrip("\r")


def is_none(line: str) -> bool:
    return line.strip().rstrip(".").casefold() == NONE.casefold()


_WRITTEN = {"\n": "\\n", "\r": "\\r", " ": "\\s"}
_READ = {"n": "\n", "r": "\r", "s": " "}
_ESCAPED = re.compile(r"\\(u[0-9a-f]{4}|.)", re.DOTALL)


@lru_cache(maxsize=16)
def _special(separators: str) -> re.Pattern[str]:
    return re.compile(rf"[\\\n\r{re.escape(separators)}]|\A\s|\s\Z")


def escape(span: str, separators: str) -> str:
    """`span` on one line, a backslash before each separator and backslash, and no white space at its ends."""
    return _special(separators).sub(lambda match: _written(match[0]), span)


def _written(character: str) -> str:
    if character.isspace():
        return _WRITTEN.get(character, f"\\u{ord(character):04x}")
    return "\\" + character


def _read(escaped: str) -> str:
    return chr(int(escaped[1:], 16)) if len(escaped) > 1 else _READ.get(escaped, escaped)


def unescape(piece: str) -> str:
    """The span that `escape` wrote, without the white space around it."""
    piece = piece.lstrip()
    stripped = piece.rstrip()
    if len(stripped) < len(piece) and (len(stripped) - len(stripped.rstrip("\\"))) % 2 == 1:
        stripped += piece[len(stripped)]
    return resolve(stripped)


def resolve(escaped: str) -> str:
    """What was written with backslashes, its white space as it is."""
    return _ESCAPED.sub(lambda match: _read(match[1]), escaped) if "\\" in escaped else escaped


def split_unescaped(text: str, separator: str, at_most: int = -1) -> list[str]:
    """`text` cut at each separator without a backslash before it; the pieces keep their backslashes."""
    if "\\" not in text:
        return text.split(separator, at_most)
    matches = re.finditer(rf"\\.|{re.escape(separator)}", text, re.DOTALL)
    cuts = [match.start() for match in matches if match[0] == separator]
    if at_most >= 0:
        cuts = cuts[:at_most]
    starts = [0, *[cut + len(separator) for cut in cuts]]
    return [text[start:end] for start, end in zip(starts, [*cuts, len(text)], strict=True)]
