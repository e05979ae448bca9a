"""What `--threshold` says: from which probability on a label, or `None`, is the answer.

`LABEL=p` is for the one classification data set of a run, `None=p` for whether a text has any item, in every set that
has items, and `None=dev` for the threshold that an evaluation of dev has fitted for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from anit_ds.data.rundata import DataSet
from anit_ds.data.tasks import NONE
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.data.tasks.multilabel import MULTILABEL
from anit_ds.errors import InputError

FITTED = f"{NONE}=dev"


@dataclass(frozen=True)
class Thresholds:
    """`labels` by label, `none` by data set; `fitted`: those of `none` are dev's."""

    labels: Mapping[str, float]
    none: Mapping[str, float]
    fitted: bool = False

    @classmethod
    def read(
        cls, given: Sequence[str], sets: Sequence[DataSet], fitted_on_dev: Callable[[], Mapping[str, float]]
    ) -> Thresholds:
        """What a command line gives, for a run of these data sets.

        Raises InputError: what is no threshold, one for no label of the run, and what `fitted_on_dev` raises.
        """
        classified = [s for s in sets if s.task is CLASSIFICATION]
        extracted = [s.name for s in sets if s.task is not CLASSIFICATION]
        labels = list(classified[0].instructions.labels) if len(classified) == 1 else []
        if any(not labels and not (extracted and text.startswith(f"{NONE}=")) for text in given):
            cure = f"; {NONE}=p is for whether a text has any item" if extracted else ""
            multilabel = any(s.task is MULTILABEL for s in sets)
            cure += ", --min-score leaves out labels that are not sure" if multilabel else ""
            raise InputError(
                f"--threshold: is for a run with one classification data set; this has {len(classified)}{cure}"
            )
        if not extracted:
            return cls(read_thresholds(given, labels), {})
        numbers = [text for text in given if text != FITTED]
        found, fitted = read_thresholds(numbers, [*labels, NONE]), len(numbers) < len(given)
        if NONE in labels and (fitted or NONE in found):
            raise InputError(f"--threshold: {NONE} is a label of {classified[0].name} and the empty set of others")
        none = found.pop(NONE, None)
        if fitted and none:
            raise InputError(f"--threshold: {NONE!r} has two; give one")
        return cls(found, fitted_on_dev() if fitted else dict.fromkeys(extracted, none) if none else {}, fitted)


def read_thresholds(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """`LABEL=p` as a command line has them. Raises InputError for what is none, or names another label."""
    thresholds: dict[str, float] = {}
    for text in given:
        label, equals, number = text.rpartition("=")
        try:
            probability = float(number)
        except ValueError:
            probability = -1.0
        if not equals or not 0 < probability <= 1:
            raise InputError(f"--threshold: {text!r} is no LABEL=p with a probability above 0 and up to 1")
        if label not in names:
            raise InputError(f"--threshold: no label is called {label!r}; there are {', '.join(names)}")
        if label in thresholds:
            raise InputError(f"--threshold: {label!r} has two; give one")
        thresholds[label] = probability
    return thresholds
