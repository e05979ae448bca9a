"""Which samples an optimizer step sees, and how they become batches.

The plan of an epoch follows from (seed, epoch, lengths, global batch) alone. Ranks and micro-batches only deal the
samples of a global batch out, so a run may stop on two ranks and go on with eight: position is a number of optimizer
steps, and every sample is seen once an epoch, those of a short last batch included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from anit_ds.adversarial.batch import Batch
from anit_ds.config import TrainConfig
from anit_ds.data.prompts import Encoded
from anit_ds.errors import InputError

# Batches are cut from runs of this many global batches sorted by length: long enough that a batch is even, short enough
# that an epoch stays shuffled.
_GROUPED_BATCHES = 32


class Split(NamedTuple):
    """How a rank runs its share of a global batch: in so many micro-batches, of `samples` each or fewer."""

    micro_batches: int
    samples: int

    @classmethod
    def of(cls, train: TrainConfig, ranks: int) -> Split:
        """As few micro-batches as `train.micro_batch` allows, as even as they go. Raises InputError where there are
        more ranks than samples in a global batch."""
        if ranks > train.global_batch:
            raise InputError(
                f"train.global_batch: {train.global_batch} is less than a sample for each of {ranks} ranks; make it "
                f"{ranks} or more, or take fewer ranks"
            )
        micro_batches = math.ceil(train.global_batch / (train.micro_batch * ranks))
        return cls(micro_batches, math.ceil(train.global_batch / (micro_batches * ranks)))


def steps_per_epoch(samples: int, global_batch: int) -> int:
    return math.ceil(samples / global_batch)


def plan_epoch(
    lengths: Sequence[int], global_batch: int, *, seed: int, epoch: int, group_by_length: bool = True
) -> list[np.ndarray]:
    """The sample indices of each optimizer step of an epoch: each sample once, in int64 arrays of global_batch or
    fewer."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = [order[i : i + global_batch] for i in range(0, len(order), global_batch)]
    if not group_by_length:
        return batches
    tokens = np.asarray(lengths)
    short = batches.pop() if len(batches[-1]) < global_batch else None
    grouped = []
    for first in range(0, len(batches), _GROUPED_BATCHES):
        run = np.concatenate(batches[first : first + _GROUPED_BATCHES])
        run = run[np.argsort(tokens[run], kind="stable")]
        cut = [run[i : i + global_batch] for i in range(0, len(run), global_batch)]
        grouped += [cut[i] for i in rng.permutation(len(cut))]
    return grouped if short is None else [*grouped, short]


def deal(indices: np.ndarray, lengths: Sequence[int], *, ranks: int, micro_batches: int) -> list[list[np.ndarray]]:
    """A global batch as [micro-batch][rank] of sample indices: rows of like length together, work even over ranks.

    Where samples do not go round, some micro-batches are smaller, or empty: every rank still takes part in each.
    """
    tokens = np.asarray([lengths[i] for i in indices])
    ordered = indices[np.argsort(-tokens, kind="stable")]
    parts = np.array_split(ordered, ranks * micro_batches)
    # Longest to shortest, back and forth over the ranks, so that no rank gets the long end of every round.
    rounds = [parts[i * ranks : (i + 1) * ranks] for i in range(micro_batches)]
    return [round_ if i % 2 == 0 else round_[::-1] for i, round_ in enumerate(rounds)]


def collate(
    samples: Sequence[Encoded],
    *,
    pad_id: int,
    tokens: str,
    attack_none: bool = True,
    beta: Sequence[float],
    step: int,
    denominator: float,
    pad_to_multiple_of: int = 1,
    packed: bool = False,
) -> Batch:
    """Batch of tokenised samples, padded or (`packed`) end to end in one row.

    `tokens` is method.tokens (prompt, all, instruction or text), `attack_none` method.attack_none, `beta` one a sample.
    Labels follow from lengths, never from the pad id, which many models share with EOS.
    """
    width = max(len(s) for s in samples)
    width = math.ceil(width / pad_to_multiple_of) * pad_to_multiple_of
    ids = np.full((len(samples), width), pad_id, dtype=np.int64)
    attended = np.zeros((len(samples), width), dtype=bool)
    scope = np.zeros((len(samples), width), dtype=bool)
    rows: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    for row, sample in enumerate(samples):
        answer, stop = len(sample.prompt), len(sample)
        ids[row, :answer], ids[row, answer:stop] = sample.prompt, sample.answer
        attended[row, :stop] = True
        spans = {"prompt": (0, answer), "all": (0, stop), "instruction": sample.instruction, "text": sample.text}
        first, last = spans[tokens]
        scope[row, first:last] = bool(sample.answer) and (attack_none or not sample.is_none)  # a filler has no answer
        rows += [row] * len(sample.answer)
        positions += range(answer - 1, stop - 1)
        targets += sample.answer
    keys = np.array([s.key for s in samples], dtype=np.uint64).view(np.int64)
    batch = Batch(
        input_ids=torch.from_numpy(ids),
        attended=torch.from_numpy(attended),
        scope=torch.from_numpy(scope),
        sample_ids=torch.from_numpy(keys),
        beta=torch.tensor(list(beta), dtype=torch.float32),
        target_rows=torch.tensor(rows, dtype=torch.int64),
        target_positions=torch.tensor(positions, dtype=torch.int64),
        target_ids=torch.tensor(targets, dtype=torch.int64),
        step=step,
        denominator=denominator,
        right_padded=True,
    )
    return batch.packed() if packed else batch


def filler(sample: Encoded) -> Encoded:
    """A row that takes part in a pass and counts for nothing: one token, no answer, no instruction."""
    return Encoded(sample.key, sample.prompt[:1], [], (0, 0), (0, 0), 0.0, sample.dataset)
