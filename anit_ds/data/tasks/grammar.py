"""Which answers about a text are valid: labels that are known, spans copied from the text. For constrained decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from itertools import pairwise
from typing import Self

from anit_ds.data.examples import Item
from anit_ds.data.tasks.answers import NONE, SetTask, Task, escape, resolve, split_unescaped, unescape
from anit_ds.data.tasks.multilabel import Multilabel


def grammar_for(task: Task, text: str, words: Mapping[str, str]) -> Grammar | None:
    """The valid answers about a text; None where an answer is one label, which is chosen by its probability."""
    if isinstance(task, Multilabel):
        return LabelGrammar(task, words)
    return SpanGrammar(task, text, words) if isinstance(task, SetTask) else None


class Grammar(ABC):
    """The valid answers about one text: `None`, or items as `SetTask.render` writes them. `beyond_ascii`: which
    characters that are not ASCII may be in them, of those `made_of` has."""

    def __init__(self, made_of: Iterable[str]) -> None:
        self.beyond_ascii = {character for part in made_of for character in part if not character.isascii()}
        self._may_be_none = True
        self._begins = lru_cache(maxsize=None)(self._begins_uncached)

    def without_none(self) -> Self:
        """The same answers but for `None`."""
        other = copy(self)
        other._may_be_none = False
        other._begins = lru_cache(maxsize=None)(other._begins_uncached)
        return other

    def begins(self, answer: str) -> bool:
        """Whether some valid answer begins with this."""
        return self._begins(answer)

    def is_whole(self, answer: str) -> bool:
        """Whether this is a valid answer."""
        line = _unindented(answer)
        if line is None or line == NONE:
            return line == NONE and self._may_be_none
        return self._items(split_unescaped(line, ";")) is not None

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
        if NONE.startswith(line) and self._may_be_none:
            return True
        *closed, last = split_unescaped(line, ";")
        items = self._items(closed)
        begun = _after_blank(last) if closed and last else last
        return items is not None and begun is not None and self._may_follow(items, begun)

    def _items(self, pieces: Sequence[str]) -> list[Item] | None:
        """The items that the pieces between semicolons are, or None where they may not stand in one answer."""
        items = []
        for place, piece in enumerate(pieces):
            body = _after_blank(piece) if place else piece
            item = None if body is None else self._item(body)
            if item is None:
                return None
            items.append(item)
        return items if self._may_stand(items) else None

    @abstractmethod
    def _item(self, body: str) -> Item | None:
        """The item that is written like this, or None."""

    @abstractmethod
    def _may_stand(self, items: Sequence[Item]) -> bool:
        """Whether these items, each valid, may stand in one answer."""

    @abstractmethod
    def _may_follow(self, items: Sequence[Item], begun: str) -> bool:
        """Whether an item that begins like this may follow these."""


class LabelGrammar(Grammar):
    """Labels that are known, none twice, in the order of training: of each set one answer."""

    def __init__(self, task: Multilabel, words: Mapping[str, str]) -> None:
        super().__init__(words.values())
        self._places = {escape(said, task.label_separators): place for place, said in enumerate(words.values())}

    def _item(self, body: str) -> Item | None:
        return (body,) if body in self._places else None

    def _may_stand(self, items: Sequence[Item]) -> bool:
        return all(self._places[a] < self._places[b] for (a,), (b,) in pairwise(items))

    def _may_follow(self, items: Sequence[Item], begun: str) -> bool:
        last = self._places[items[-1][0]] if items else -1
        return any(label.startswith(begun) for label, place in self._places.items() if place > last)


class SpanGrammar(Grammar):
    """Items of known labels and spans of the text.

    A span is a part of the text that begins and ends where a word does, and no item is stated more often than the
    most frequent of its spans occurs: two mentions of a screen may share the one word that is said of them. Words are
    cut at ASCII letters and digits only, so that scripts without blanks are free.
    """

    def __init__(self, task: SetTask, text: str, words: Mapping[str, str]) -> None:
        super().__init__([text, *words.values()])
        self._spans = len(task.item_fields) - 1
        self._separators = task.separators
        self._text = text
        self._labels = {escape(said, task.label_separators): raw for raw, said in words.items()}

    def _may_stand(self, items: Sequence[Item]) -> bool:
        return all(count <= max(self._text.count(span) for span in item[1:]) for item, count in Counter(items).items())

    def _item(self, body: str) -> Item | None:
        head, *rest = split_unescaped(body, ":", at_most=1)
        if head not in self._labels or not rest:
            return None
        spans = [_after_blank(span) for span in self._split(rest[0])]
        if len(spans) != self._spans or not all(span and self._is_span(span) for span in spans):
            return None
        return self._labels[head], *(resolve(span) for span in spans if span)

    def _may_follow(self, items: Sequence[Item], begun: str) -> bool:
        head, *rest = split_unescaped(begun, ":", at_most=1)
        if not rest:
            return any(label.startswith(head) for label in self._labels)
        if head not in self._labels:
            return False
        *closed, last = self._split(rest[0])
        whole = [_after_blank(span) for span in closed]
        if len(closed) >= self._spans or not all(span and self._is_span(span) for span in whole):
            return False
        if not last:
            return True
        span = _after_blank(last)
        return span is not None and self._span_begins(span)

    def _split(self, spans: str) -> list[str]:
        return split_unescaped(spans, ",") if self._spans > 1 else [spans]

    def _span_begins(self, begun: str) -> bool:
        """Whether a span of the text, as it is escaped, begins with this."""
        backslashes = len(begun) - len(begun.rstrip("\\"))
        open_escape = backslashes % 2 == 1
        raw = resolve(begun[:-1] if open_escape else begun)
        if not raw:
            return not open_escape or any(map(self._is_escaped, self._text))
        following = [self._text[start + len(raw) :] for start in self._starts(raw)]
        if open_escape:
            return any(self._is_escaped(after[:1]) for after in following)
        goes_on = not raw.strip() or not _ends_as_read(begun)
        return any(after.strip() for after in following) if goes_on else bool(following)

    def _is_escaped(self, character: str) -> bool:
        """Whether a backslash stands before this character of a span, or may."""
        return character in (*self._separators, "\\") or character.isspace()

    def _is_span(self, written: str) -> bool:
        raw = resolve(written)
        whole = bool(raw.strip()) and _ends_as_read(written)
        return whole and any(self._cut(start + len(raw)) for start in self._starts(raw))

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


def _ends_as_read(written: str) -> bool:
    """Whether nothing of a span that is written like this is stripped when the answer is read."""
    return unescape(written) == resolve(written)


def _in_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _unindented(answer: str) -> str | None:
    """The answer without the blank before it; None where it has more than one line or blank."""
    line = answer.removeprefix(" ")
    return None if "\n" in line or "\r" in line or line.startswith(" ") else line


def _after_blank(piece: str) -> str | None:
    """What follows a separator and its one blank."""
    return piece[1:] if piece[:1] == " " and not piece[1:2].isspace() else None
