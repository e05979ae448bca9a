"""Multilabel classification: `label; label`, any number of labels of one text, `None` where none of them fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anit_ds.data.examples import Item
from anit_ds.data.tasks.answers import Parsed, SetTask


class Multilabel(SetTask):
    """A set of labels. It is written in the order of the instructions' labels, whatever the data's order: were one set
    trained in several orders, its probability would be shared out over answers that mean the same."""

    def render(self, items: Sequence[Item], words: Mapping[str, str]) -> str:
        places = {label: place for place, label in enumerate(words)}
        return super().render(sorted(set(items), key=lambda item: places.get(item[0], len(places))), words)

    def parse(self, answer: str, words: Mapping[str, str]) -> Parsed:
        said = super().parse(answer, words)
        return Parsed(tuple(dict.fromkeys(said.items)), said.malformed)  # one that is said twice is said


MULTILABEL = Multilabel("multilabel", ("label",))
