"""What was measured to go wrong in runs like this one, said before it begins."""

from __future__ import annotations

from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config
from anit_ds.data.rundata import RunData

# Of wnut17's training sentences six in ten have no entity; what is extracted elsewhere is in nearly every text.
_SPARSE = 0.5


def caution(config: Config, data: RunData) -> str | None:
    """Why greedy answers may find too little where most are `None`, and what helps; None where that is not so.

    On wnut17 `sft` found 42 entities, an attack on the text in the same step 28, or 17 where it attacked samples that
    have none too; with a threshold for `None` they are level. With a step of its own it found 48, and as many as `sft`
    over three seeds (docs/results.md).
    """
    method = config.method
    attacked = "tokens" in METHODS[method.name].reads and method.tokens != "instruction" and not method.alternates
    for of in data.sets:
        samples = of.split("train")
        empty = sum(not sample.items for sample in samples) / max(1, len(samples))
        if empty > _SPARSE:
            more = ", the more so after an attack on the text" if attacked else ""
            return (
                f"{of.name}: {empty:.0%} of the training answers are None, so greedy answers say it too often{more}. "
                f"`anit eval {config.out} --split dev --constrained` finds from which probability on to say it, "
                "and --threshold None=dev does"
            )
    return None
