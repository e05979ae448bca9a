"""Whether a text has anything to find: `None` chosen by its probability, as a label is (labels.py).

Where most texts of training have no item, a greedy answer is `None` even for texts in which the model sees one:
precise, and blind. From which probability on `None` should be said is one number, the one with the best micro-F1 on
dev, as SQuAD 2.0's null threshold is (Rajpurkar et al., 2018). Below it the answer is the greedy one of those with an
item; `None` still where that one has no end within the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from anit_ds.data.examples import Item
from anit_ds.data.tasks import Parsed, score
from anit_ds.evaluation.report import reports_of


def chosen(probability: float | None, threshold: float, something: Parsed) -> Parsed:
    """What is said of a text whose `None` has this probability, and whose best answer with an item is `something`; of
    one whose probability is not finite (None), which no threshold decides, that answer."""
    return something if probability is None or probability < threshold else Parsed(())


def fitted_threshold(
    probabilities: Sequence[float | None], somethings: Sequence[Parsed], gold: Sequence[Sequence[Item]]
) -> float | None:
    """The threshold in (0, 1] with the best micro-F1; of equals the lowest, with which `None` is said most often.

    Of each text: the probability of `None` as in `chosen`, the best answer with an item, the gold items. None where no
    threshold gets an item right.
    """
    rising = sorted(zip((p or 0.0 for p in probabilities), somethings, gold, strict=True), key=lambda text: text[0])
    hits, stated, best, found = 0, sum(map(len, gold)), 0.0, None
    for place, (probability, something, items) in enumerate(rising):  # this text and all before it state an item
        hits += (Counter(something.items) & Counter(items)).total()
        stated += len(something.items) + something.malformed
        following = rising[place + 1][0] if place + 1 < len(rising) else 1.0
        if probability < following and hits and 2 * hits / stated > best:
            best, found = 2 * hits / stated, _between(probability, following)
    return found


def _between(low: float, high: float) -> float:
    """The shortest number above `low` and up to `high`, near their middle."""
    middle = (low + high) / 2
    return next((short for digits in range(2, 16) if low < (short := round(middle, digits)) <= high), high)


def nothing_report(said: Sequence[Parsed], gold: Sequence[Sequence[Item]], threshold: float) -> dict[str, Any]:
    """Scores of the answers at a threshold, and how many of them are `None`."""
    scored = score(gold, said)
    figures = {key: getattr(scored, key) for key in ("micro_f1", "precision", "recall")}
    return {"threshold": threshold, "said": sum(not parsed.items for parsed in said), **figures}


def thresholds_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Of each data set the threshold that a report on dev has found to be best, whatever it was asked to score; an
    earlier version's reports have no `best`."""
    found = {name: of.get("nothing") or {} for name, of in reports_of(report).items()}
    best = {name: of.get("best", of["threshold"] if of.get("fitted") else None) for name, of in found.items()}
    return {name: threshold for name, threshold in best.items() if threshold}
