"""Labels by probability: what a classifier says when each label is scored, how sure it is, and how sure it may be.

A label's score is the log-probability of its words after the prompt, EOS included. Scores divided by a temperature and
normalised over the labels are probabilities. The temperature is fitted on dev (Guo et al., 2017), so that of what is
said with 80% about 80% is right; it changes no label unless a threshold asks for it. A dev split without an error
would ask for the temperature 0, at which all is certain. So its gold labels are softened, as Platt (1999) softens his
targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anit_ds.data.tasks import Parsed, score
from anit_ds.evaluation.report import reports_of

# From a model twenty times too timid to one twenty times too bold, in steps of 1.5%. A dev split answered at random
# would ask for infinity.
_TEMPERATURES = torch.logspace(-1.3, 1.3, 401, dtype=torch.float64)
_DIGITS = 6
# More labels than this are not scored one by one unless that is asked for: their passes would take longer than the
# answers.
_FEW = 16


@dataclass(frozen=True)
class Labels:
    """How a data set's labels are chosen: `names`, raw and in their order; the temperature, None where none was fitted;
    and thresholds, of a label the probability that it needs and that suffices for it."""

    names: Sequence[str]
    temperature: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_few(self) -> bool:
        return len(self.names) <= _FEW

    def probabilities(self, scores: Tensor) -> Tensor:
        """scores [N, labels] -> probabilities [N, labels] float64, of which each row's sum is 1."""
        return (scores.double() / (self.temperature or 1.0)).softmax(1)

    def choose(self, probabilities: Sequence[float]) -> str | None:
        """The most probable of the labels that reach their threshold; else of those that have none; else none."""
        ranked = sorted(zip(probabilities, self.names, strict=True), key=lambda pair: -pair[0])
        reached = [name for p, name in ranked if name in self.thresholds and p >= self.thresholds[name]]
        free = [name for _, name in ranked if name not in self.thresholds]
        return next(iter([*reached, *free]), None)

    def told(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """What a row says of one text: the label, None where no label reaches its threshold, and the probabilities."""
        rounded = {name: round(p, _DIGITS) for name, p in zip(self.names, probabilities, strict=True)}
        return {"label": self.choose(probabilities), "probabilities": rounded}


def fitted_temperature(scores: Tensor, gold: Tensor) -> float | None:
    """The temperature under which the gold labels are most probable, as if one text of N + 1 said nothing: a share of
    1 / (N + 1) of each gold label is spread over all labels. scores [N, labels], gold [N] the label's place.

    None without scores, or where one is not finite.
    """
    if not len(scores) or not scores.isfinite().all():
        return None
    loss = partial(torch.nn.functional.cross_entropy, target=gold, label_smoothing=1 / (len(gold) + 1))
    losses = [loss(scores.double() / temperature) for temperature in _TEMPERATURES]
    return round(float(_TEMPERATURES[torch.stack(losses).argmin()]), 4)


def expected_calibration_error(scores: Tensor, gold: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, in [0, 1]: the mean of |accuracy - confidence| over bins, by their size.

    scores [N, labels] are log-probabilities, gold [N] the right label's place. The confidence is the largest
    probability after normalising over the labels, the prediction the label that has it; the bins are of equal width
    (Guo et al., 2017, equation 3). 0 where there is nothing to count.
    """
    confidence, predicted = scores.double().softmax(1).max(1)
    right = (predicted == gold).double()
    # (0, 1/15], (1/15, 2/15], ...
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    off = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(off.abs().sum() / max(1, len(scores)))


def labels_report(scores: Tensor, gold: Tensor, labels: Labels) -> dict[str, Any]:
    """Scores of the labels chosen by probability: micro- and macro-F1, each label's precision, recall, F1 and support,
    the calibration error with and without the temperature, and the confusion matrix: a row for each gold label, a
    column for each chosen one and a last one for none."""
    chosen = [labels.choose(row) for row in labels.probabilities(scores).tolist()]
    said = [Parsed(()) if label is None else Parsed(((label,),)) for label in chosen]
    scored = score([[(labels.names[at],)] for at in gold.tolist()], said)
    confusion = [[0] * (len(labels.names) + 1) for _ in labels.names]
    for at, label in zip(gold.tolist(), chosen, strict=True):
        confusion[at][len(labels.names) if label is None else labels.names.index(label)] += 1
    calibrated = labels.temperature and expected_calibration_error(scores.double() / labels.temperature, gold)
    return {
        "micro_f1": scored.micro_f1,
        "macro_f1": scored.macro_f1,
        "abstained": chosen.count(None),
        "per_type": scored.per_type,
        "temperature": labels.temperature,
        "ece": expected_calibration_error(scores, gold),
        "ece_calibrated": calibrated,
        "thresholds": dict(labels.thresholds),
        "names": list(labels.names),
        "confusion": confusion,
    }


def temperatures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Of each data set the temperature that a report on dev has found, where it has."""
    found = {name: (of.get("labels") or {}).get("temperature") for name, of in reports_of(report).items()}
    return {name: temperature for name, temperature in found.items() if temperature}
