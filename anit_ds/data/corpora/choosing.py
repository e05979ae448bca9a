"""Which examples are used: a carved split, a few-shot fraction, a maximum.

Every choice is by the hash of (seed, id), so where examples have ids of their own it does not depend on the order of a
file, and a smaller choice is contained in a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from anit_ds.data.corpora.splits import Splits
from anit_ds.data.corpora.spool import collected
from anit_ds.data.examples import Example, hash_of_id
from anit_ds.errors import InputError

CARVED_SHARE = 0.1
"""Share of the training split that becomes a missing dev or test split (docs/method.md section 6)."""


@dataclass(frozen=True)
class Cut:
    """How much of a corpus is used.

    `fraction` keeps that share of train (stratified by label for classification, at least one of each), `max_train`,
    `max_dev` and `max_test` at most that many examples of a split.
    """

    fraction: float = 1.0
    max_train: int | None = None
    max_dev: int | None = None
    max_test: int | None = None


WHOLE = Cut()


def carve_missing(
    splits: Splits,
    group_of: Callable[[str], str],
    seed: int,
    dataset: str,
    *,
    stratify: bool = False,
    same_texts_together: bool = False,
) -> dict[str, str]:
    """Carve a dev or test split that is not there from train; returns for each carved one what was done, in words.

    Examples of one group stay together, and those of one text where that is asked for; with `stratify` the share is
    taken of each label's groups, by their first example. Raises InputError where train is too small for it.
    """
    said = {}
    first: dict[bytes, str] = {}

    def group(example: Example) -> str:
        own = group_of(example.id)
        return first.setdefault(hash_of_id(example.text, 8), own) if same_texts_together else own

    for split in ("test", "dev"):
        if split in splits.examples:
            continue
        whole = splits.examples["train"]
        strata: dict[object, dict[str, None]] = defaultdict(dict)
        seen: set[str] = set()
        for example in whole:
            if (of := group(example)) not in seen:
                seen.add(of)
                strata[example.items if stratify else None][of] = None
        groups = sum(map(len, strata.values()))
        size = max(1, round(CARVED_SHARE * groups))
        if size >= groups:
            told = "".join(f"; {note}" for note in splits.notes)
            what = "different texts" if same_texts_together else "training examples"
            raise InputError(f"{dataset}: {groups} {what} are too few to carve a {split} split{told}")
        sizes = _shares([len(ids) for ids in strata.values()], size)
        chosen_ids = (chosen(list(ids), n, seed, purpose=split) for ids, n in zip(strata.values(), sizes, strict=True))
        carved = set(chain.from_iterable(chosen_ids))
        splits.examples[split] = collected(example for example in whole if group(example) in carved)
        splits.examples["train"] = collected(example for example in whole if group(example) not in carved)
        by_label = " of each label" if stratify else ""
        said[split] = f"seeded {CARVED_SHARE:.0%} of train{by_label}, {len(splits.examples[split])} examples"
    return said


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """`total` dealt out in proportion to the sizes, the largest remainders first; one of each size is kept back."""
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    left = total - sum(shares)
    for i in [i for i in by_remainder if shares[i] < sizes[i] - 1] + by_remainder:
        if left and shares[i] < sizes[i]:
            shares[i] += 1
            left -= 1
    return shares


def thin(
    examples: Sequence[Example],
    seed: int,
    fraction: float = 1.0,
    at_most: int | None = None,
    *,
    stratify: bool = False,
) -> Sequence[Example]:
    """A seeded choice of the examples in their order; with `stratify` the fraction is taken of each label's."""
    if fraction < 1:
        strata: dict[object, list[str]] = defaultdict(list)
        for example in examples:
            strata[example.items if stratify else None].append(example.id)
        shares = [chosen(ids, max(1, round(fraction * len(ids))), seed, "fraction") for ids in strata.values()]
        examples = _only(examples, chain.from_iterable(shares))
    if at_most is not None and at_most < len(examples):
        examples = _only(examples, chosen([example.id for example in examples], at_most, seed, "maximum"))
    return examples


def chosen(ids: Sequence[str], size: int, seed: int, purpose: str) -> list[str]:
    """`size` of the ids, by the hash of (seed, purpose, id): a smaller choice is part of a larger one."""
    seeded, person = seed.to_bytes(8, "little"), purpose.encode()
    return sorted(ids, key=lambda id: hash_of_id(id, 8, seed=seeded, purpose=person))[:size]


def _only(examples: Sequence[Example], ids: Iterable[str]) -> Sequence[Example]:
    kept = set(ids)
    return collected(example for example in examples if example.id in kept)
