"""Which answers about a text are valid: labels that are known, spans copied from the text. For constrained decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from anit_ds.data.examples import Item
from anit_ds.data.tasks.answers import NONE, SetTask, escape, resolve, split_unescaped


class Grammar:
    """The valid answers about one text: `None`, or items as `SetTask.render` writes them.

    A span is a part of the text that begins and ends where a word does, and no item is stated more often than the
    rarest of its spans occurs. Words are cut at ASCII letters and digits only, so that scripts without blanks are free.
    """

    def __init__(self, task: SetTask, text: str, words: Mapping[str, str]) -> None:
        self._spans = len(task.item_fields) - 1
        self._separators = task.separators
        self._text = text
        self._labels = {escape(said, ":;"): raw for raw, said in words.items()}
        self._begins = lru_cache(maxsize=None)(self._begins_uncached)

    def begins(self, answer: str) -> bool:
        """Whether some valid answer begins with this."""
        return self._begins(answer)

    def is_whole(self, answer: str) -> bool:
        """Whether this is a valid answer."""
        line = _unindented(answer)
        if line is None or line == NONE:
            return line == NONE
        items = [self._item(piece, first=not at) for at, piece in enumerate(split_unescaped(line, ";"))]
        return all(item is not None for item in items) and self._often_enough(items)

    def whole_part(self, answer: str) -> str:
        """The longest valid answer that this one begins with, in whole items; `None` where there is none."""
        pieces = split_unescaped(answer.strip(), ";")
        for number in range(len(pieces), 0, -1):
            if self.is_whole(part := ";".join(pieces[:number])):
                return part
        return NONE

    def _begins_uncached(self, answer: str) -> bool:
        line = _unindented(answer)
        if line is None:
            return False
        if NONE.startswith(line):
            return True
        *closed, last = split_unescaped(line, ";")
        items = [self._item(piece, first=not at) for at, piece in enumerate(closed)]
        return (
            all(item is not None for item in items)
            and self._often_enough(items)
            and self._item_begins(last, first=not closed)
        )

    def _often_enough(self, items: list[Item | None]) -> bool:
        return all(
            count <= min(self._text.count(span) for span in item[1:]) for item, count in Counter(items).items() if item
        )

    def _item(self, piece: str, *, first: bool) -> Item | None:
        """The item that a piece between two semicolons is, or None."""
        body = piece if first else _after_blank(piece)
        if body is None:
            return None
        head, *rest = split_unescaped(body, ":", at_most=1)
        if head not in self._labels or not rest:
            return None
        spans = [_after_blank(span) for span in self._split(rest[0])]
        if len(spans) != self._spans or not all(span and self._is_span(resolve(span)) for span in spans):
            return None
        return self._labels[head], *(resolve(span) for span in spans if span)

    def _item_begins(self, piece: str, *, first: bool) -> bool:
        if not first and not piece:
            return True
        body = piece if first else _after_blank(piece)
        if body is None:
            return False
        head, *rest = split_unescaped(body, ":", at_most=1)
        if not rest:
            return any(label.startswith(head) for label in self._labels)
        if head not in self._labels:
            return False
        *closed, last = self._split(rest[0])
        whole = [_after_blank(span) for span in closed]
        if len(closed) >= self._spans or not all(span and self._is_span(resolve(span)) for span in whole):
            return False
        if not last:
            return True
        begun = _after_blank(last)
        return begun is not None and self._span_begins(begun)

    def _split(self, spans: str) -> list[str]:
        return split_unescaped(spans, ",") if self._spans > 1 else [spans]

    def _span_begins(self, begun: str) -> bool:
        """Whether a span of the text, as it is escaped, begins with this."""
        backslashes = len(begun) - len(begun.rstrip("\\"))
        open_escape = backslashes % 2 == 1
        raw = resolve(begun[:-1] if open_escape else begun)
        if not raw:
            return not open_escape or any(map(self._is_escaped, self._text))
        following = (self._text[start + len(raw) : start + len(raw) + 1] for start in self._starts(raw))
        return any(not open_escape or self._is_escaped(after) for after in following)

    def _is_escaped(self, character: str) -> bool:
        """Whether a backslash stands before this character of a span, or may."""
        return character in (*self._separators, "\\") or character.isspace()

    def _is_span(self, raw: str) -> bool:
        return bool(raw.strip()) and any(self._cut(start + len(raw)) for start in self._starts(raw))

    def _starts(self, raw: str) -> list[int]:
        """Where this occurs in the text at a word's beginning."""
        found, at = [], self._text.find(raw)
        while at >= 0 and raw:
            if self._cut(at):
                found.append(at)
            at = self._text.find(raw, at + 1)
        return found

    def _cut(self, at: int) -> bool:
        """Whether a word may begin or end here."""
        return not (_in_word(self._text[at - 1 : at]) and _in_word(self._text[at : at + 1]))


def _in_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _unindented(answer: str) -> str | None:
    """The answer without the blank before it; None where it has more than one line or blank."""
    line = answer.removeprefix(" ")
    return None if "\n" in line or "\r" in line or line.startswith(" ") else line


def _after_blank(piece: str) -> str | None:
    """What follows a separator and its one blank."""
    return piece[1:] if piece[:1] == " " and not piece[1:2].isspace() else None
