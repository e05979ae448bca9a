"""Classification: the answer is the label's words and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anit_ds.data.examples import Item
from anit_ds.data.tasks.answers import LabelLookup, Parsed, first_line, words_of
from anit_ds.errors import InputError


@dataclass(frozen=True)
class Classification:
    """One label per text. An answer that is no label is one malformed piece, so micro-F1 equals accuracy."""

    name: str = "classification"
    item_fields: tuple[str, ...] = ("label",)

    def render(self, items: Sequence[Item], words: Mapping[str, str]) -> str:
        if len(items) != 1 or len(items[0]) != 1:
            raise InputError(f"classification needs exactly one label per text, not {list(items)!r}")
        return words_of(items[0][0], words)

    def parse(self, answer: str, words: Mapping[str, str]) -> Parsed:
        label = LabelLookup(words).alone(first_line(answer).strip())
        return Parsed((), malformed=1) if label is None else Parsed(((label,),))


CLASSIFICATION = Classification()
