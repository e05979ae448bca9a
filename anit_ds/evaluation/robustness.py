"""What noise in the instruction does to a model's answers: the score under it, its gap, and consistency.

Consistency is the paper's stated aim: the share of samples whose parsed answers to the raw and to the noisy instruction
are equal (docs/method.md section 6); of a mixture the mean of its sets' shares, as its score is that of their scores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean as mean
from typing import Any

from anit_ds.evaluation.report import Evaluation


def beside_raw(noisy: Evaluation, raw: Evaluation) -> Evaluation:
    """The evaluation under a noise with `gap` (its micro-F1 less the raw one) and `consistency` in its report.

    Raises ValueError when the two are not of the same samples in the same order.
    """
    more = {
        "gap": noisy.micro_f1 - raw.micro_f1,
        "consistency": consistency(raw.predictions, noisy.predictions),
    }
    return replace(noisy, report={**noisy.report, **more})


def consistency(raw: Sequence[Mapping[str, Any]], noisy: Sequence[Mapping[str, Any]]) -> float:
    """Share in [0, 1] of the samples whose two predictions (rows of predictions-NAME.jsonl) parse to the same items; of
    several data sets the mean of their shares.

    Items are compared as multisets; pieces that could not be parsed count as one answer by their number.
    """
    if [row["id"] for row in raw] != [row["id"] for row in noisy]:
        raise ValueError("consistency compares two answers to the same samples, in the same order")
    equal: dict[str, list[bool]] = defaultdict(list)
    for a, b in zip(raw, noisy, strict=True):
        equal[a["dataset"]].append(same_answer(a, b))
    return mean(mean(flags) for flags in equal.values()) if equal else 0.0


def same_answer(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two rows parse to the same items."""
    return _meaning(a) == _meaning(b)


def _meaning(row: Mapping[str, Any]) -> tuple[Counter[tuple[str, ...]], int]:
    return Counter(tuple(item) for item in row["predicted"]), row["malformed"]
