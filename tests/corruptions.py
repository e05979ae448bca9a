"""Wrong answers made from gold ones: what scores are compared on with other packages' scores."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from anit_ds.data.examples import Item


def entities(words: list[str], tags: list[str]) -> list[Item]:
    """(type, span) of each entity in words with IOB2 tags."""
    found: list[list[str]] = []
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            found.append([tag[2:], word])
        elif tag.startswith("I-"):
            found[-1][1] += f" {word}"
    return [(kind, span) for kind, span in found]


def corrupt_tags(tags: list[str], kinds: list[str], rng: random.Random) -> list[str]:
    """Entities dropped, retyped, cut short or added, as valid IOB2."""
    corrupted, kind = [], "O"
    for tag in tags:
        if tag.startswith("B-"):
            kind = rng.choice([tag[2:]] * 4 + ["O", *kinds])
            corrupted.append("O" if kind == "O" else f"B-{kind}")
        elif tag.startswith("I-"):
            kind = kind if rng.random() < 0.8 else "O"
            corrupted.append("O" if kind == "O" else f"I-{kind}")
        else:
            kind = "O"
            corrupted.append("O" if rng.random() < 0.99 else f"B-{rng.choice(kinds)}")
    return corrupted


def corrupt_items(items: Sequence[Item], kinds: list[str], rng: random.Random) -> list[Item]:
    """Items dropped, retyped, altered in their text, repeated, or added."""
    corrupted: list[Item] = []
    for item in items:
        change = rng.random()
        if change < 0.1:
            continue
        if change < 0.2:
            corrupted.append((rng.choice(kinds), *item[1:]))
        elif change < 0.3:
            corrupted.append((item[0], f"{item[1]}; x: y, z", *item[2:]))
        else:
            corrupted += [item] * (2 if change < 0.4 else 1)
    if rng.random() < 0.2:
        corrupted.append((rng.choice(kinds), "an added", "pair"))
    return corrupted


def numbered(items: Sequence[Item]) -> set[tuple[Item, int]]:
    """A multiset as a set: each repeat carries its number."""
    seen: Counter[Item] = Counter()
    found = set()
    for item in items:
        found.add((item, seen[item]))
        seen[item] += 1
    return found
