"""Before a run trains: whether its model computes in the run's rows what it computes for a sample by itself.

Samples that lie in one row, and rows without a mask, rely on what each layer of a transformers model is told. Most of
what does not go together with them can be read from a model's configuration, not all: a layer may drop what it is told,
or make a mask of its own. Two samples tell, before a wrong number is trained on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.errors import InputError, first_line

# Of the logits' norm. Rounding makes 1e-6 of it in float32 and 1.7% in bfloat16 (SmolLM2 on random tokens), a neighbour
# or a token of the future that is seen 50% and more in tiny random models.
_MOST_APART = {torch.float32: 1e-2}
_MOST_APART_IN_HALVES = 0.1


def rehearse(lm: PerturbableLM, batch: Batch) -> None:
    """Run a batch as `lm` runs it and sample by sample, and compare the logits at its answers.

    batch: what `lm.prepare` returned, on the model's device; the same one on all ranks. Long samples tell more, as a
    window shows only in what is longer. Padded batches get their mask back where the model needs it. Raises InputError
    where samples in one row are not computed as whole samples are.
    """
    with torch.no_grad(), lm.dropout.off():
        try:
            apart = distance(lm, batch)
        except torch.OutOfMemoryError:
            raise
        except (
            InputError,
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
        ) as refused:  # what whole samples alone bear
            apart, why = float("inf"), first_line(refused)
        else:
            why = f"logits are {apart:.0%} apart"
    most = _MOST_APART.get(next(lm.module.parameters()).dtype, _MOST_APART_IN_HALVES)
    if apart <= most:
        return
    if batch.lengths is None:
        lm.use_own_masks()
        return
    kind = getattr(getattr(lm.module, "config", None), "model_type", type(lm.module).__name__)
    raise InputError(
        f"a {kind} model answers a sample in a row with others unlike the sample by itself ({why}); use "
        "train.padding_free=false and method.schedule=three_pass"
    )


def distance(lm: PerturbableLM, batch: Batch) -> float:
    """|| logits in the run's rows - logits of whole samples || / || the latter ||, each without its mean over V.

    A batch lists its answer positions sample by sample, so the two are in one order.
    """
    alone = _centred(torch.cat([_alone(lm, batch, sample) for sample in range(batch.size)]))
    rows = lm.logits(batch, (None, lambda e: e))  # a tree has a row for clean and one for perturbed passes
    size = float(alone.norm())
    if not (size > 0 and math.isfinite(size)):
        return 0.0  # NaN, which training says better, or nothing to compare
    return float(torch.stack([(_centred(row) - alone).norm() for row in rows]).max()) / size


def _alone(lm: PerturbableLM, batch: Batch, sample: int) -> Tensor:
    """[A, V] of one sample: no padding, no neighbour, and the mask that the model makes itself."""
    places = batch.target_positions[batch.target_rows == sample]
    if batch.lengths is None:
        ids = batch.input_ids[sample][batch.attended[sample]]
    else:
        start = sum(batch.lengths[:sample])
        ids, places = batch.input_ids[0, start : start + batch.lengths[sample]], places - start
    with lm.head.only_at(torch.zeros_like(places), places):
        logits: Tensor = lm.module(input_ids=ids[None], use_cache=False).logits
    return logits


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)
