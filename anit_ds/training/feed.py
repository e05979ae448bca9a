"""`Feed`: from a step's number to this rank's batches, and nothing that has a state to save.

The samples of an epoch, their tokens and their order follow from the configuration and the epoch; a step's place in the
epoch says which of them it sees (batching.py). A sample has `noise.views` instructions, and so many rows in a batch, or
one, of the view that the model finds hardest.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np
import torch

from anit_ds.adversarial import Batch
from anit_ds.config import Config
from anit_ds.data.examples import Sample, sample_key
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.ranks import distributed
from anit_ds.training.batching import collate, deal, filler, plan_epoch, steps_per_epoch

logger = logging.getLogger(__name__)


class Feed:
    """What each optimizer step trains on.

    load_data: the run's data as of an epoch, whose noise may be drawn anew. accumulation: micro-batches per rank and
    step. Raises InputError for anything wrong in the data.
    """

    data: RunData
    per_epoch: int  # global batches of an epoch
    replays: int  # optimizer steps that each of them is stepped on in a row

    def __init__(
        self, config: Config, encoder: PromptEncoder, load_data: Callable[[int], RunData], *, accumulation: int,
        pad_id: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.config, self.encoder, self.accumulation, self.pad_id, self.device = (
            config, encoder, accumulation, pad_id, device,
        )  # fmt: skip
        self.packed = config.packs  # which `schedule: auto` decides once the model is there
        self._load_data = load_data
        self._epoch = -1
        self.data = load_data(0)
        self._enter(0)
        self.per_epoch = steps_per_epoch(len(self.samples), config.train.global_batch)
        self.replays = config.method.replays

    def count_what_is_cut(self) -> tuple[dict[str, int], int]:
        """(texts of each split that lose their end, training samples left out), as of the first epoch.

        Counted before anything is trained: whoever resumes counts the same, and a prompt of dev or test without room
        is refused now and not after hours.
        """
        encoder, splits = self.encoder, ("dev", "test")
        for data_set, split in itertools.product(self.data.sets, splits):
            encoder.encode_prompts(data_set.split(split), split)
        cut = {split: len(encoder.cut[split]) for split in ("train", *splits)}
        if any(cut.values()):
            logger.warning(
                "texts cut to fit data.max_length %d: %s", encoder.max_length,
                ", ".join(f"{count} of {split}" for split, count in cut.items()),
            )  # fmt: skip
        return cut, len(encoder.left_out)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that the optimizer step `step` (from 0) belongs to."""
        return step // self.replays // self.per_epoch

    def samples_of(self, step: int) -> np.ndarray:
        """The indices into `samples` of the step's global batch."""
        epoch, place = divmod(step // self.replays, self.per_epoch)
        self._enter(epoch)
        # Noise that is drawn anew may leave out a few samples more than in the first epoch, whose steps are counted.
        indices: np.ndarray = self.plan[place % len(self.plan)]
        return indices

    def batches(self, step: int, indices: np.ndarray, losses_of: Callable[[Batch], list[float]]) -> list[Batch]:
        """This rank's micro-batches of a global batch, on the host.

        losses_of: each row's loss in a batch, asked where the worst of several views is to be trained on.
        """
        noise = self.config.noise
        answer_tokens = sum(len(view.answer) for i in indices for view in self.samples[i][: noise.rows])
        # DeepSpeed averages over ranks and accumulation; this undoes it: sum over the global batch's answer tokens
        # divided by their number, however they fall on ranks and micro-batches.
        denominator = answer_tokens / (distributed.world_size() * self.accumulation)
        micro_batches = self._micro_batches(indices)
        if noise.rows < noise.views:
            micro_batches = [
                hardest(micro, losses_of(self._batch(micro, step, denominator))) for micro in micro_batches
            ]
        return [self._batch(micro, step, denominator) for micro in micro_batches]

    def pair(self) -> Batch:
        """The two longest samples, on the host: the same ones on all ranks, for the run to be rehearsed on."""
        longest = sorted(self.samples, key=lambda views: len(views[0]))[-2:]
        return self._batch([views[:1] for views in longest], 0, 1.0)

    def beta(self, sample: Encoded) -> float:
        """What scales the sample's attack: its data set's beta, its own distortion, or the YAML's number."""
        method = self.config.method
        if method.beta is not None:
            return method.beta
        return sample.distortion if method.beta_scope == "sample" else self.data.betas[sample.dataset]

    def figures(self, indices: np.ndarray, seconds: float) -> dict[str, float]:
        """What the monitor shows of a step on these samples that took so many seconds."""
        return {
            "data/beta": float(np.mean([self.beta(view) for i in indices for view in self.samples[i]])),
            "tokens_per_second": sum(self.lengths[i] for i in indices) / seconds,
            "step_seconds": seconds,
        }

    def datasets(self, indices: np.ndarray) -> str:
        """The data sets that these samples are of."""
        return ", ".join(sorted({self.samples[i][0].dataset for i in indices}))

    def _enter(self, epoch: int) -> None:
        """Samples, their tokens, and the plan of an epoch; noise is drawn anew where the YAML asks for it."""
        if epoch == self._epoch:
            return
        train = self.config.train
        resampled = self.config.noise.resample == "epoch" and epoch > 0
        if resampled:
            self.data = self._load_data(epoch)
        if self._epoch < 0 or resampled or len(self.data.sets) > 1:
            self.samples = self._encode(self.data.train_samples(seed=train.seed, epoch=epoch))
        if not self.samples:
            raise InputError("data.mix: with these weights no training sample is left; make a weight larger")
        self.lengths = [sum(map(len, views)) for views in self.samples]
        self.plan = plan_epoch(
            self.lengths, train.global_batch, seed=train.seed, epoch=epoch, group_by_length=train.group_by_length
        )
        self._epoch = epoch
        if epoch and len(self.plan) > self.per_epoch:
            logger.warning(
                "epoch %d: the noise drawn for it leaves room for %d samples, more than the %d batches take that an "
                "epoch has since the first", epoch + 1, len(self.samples), self.per_epoch,
            )  # fmt: skip

    def _encode(self, samples: list[list[Sample]]) -> list[list[Encoded]]:
        """Each sample's views as tokens, but for views, and samples, that do not fit."""
        views = [view for sample in samples for view in sample]
        encoded = {e.key: e for e in self.encoder.encode(views)}
        keys = [[sample_key(view.id) for view in sample] for sample in samples]
        found = [[encoded[key] for key in of_sample if key in encoded] for of_sample in keys]
        return [of_sample for of_sample in found if of_sample]

    def _micro_batches(self, indices: np.ndarray) -> list[list[list[Encoded]]]:
        dealt = deal(indices, self.lengths, ranks=distributed.world_size(), micro_batches=self.accumulation)
        mine = [of_ranks[distributed.rank()] for of_ranks in dealt]
        return [[self.samples[i] for i in micro] or [[filler(self.samples[indices[0]][0])]] for micro in mine]

    def _batch(self, micro: list[list[Encoded]], step: int, denominator: float) -> Batch:
        views = [view for sample in micro for view in sample]
        return collate(
            views,
            pad_id=self.pad_id,
            tokens=self.config.method.tokens,
            attack_none=self.config.method.attack_none,
            beta=[self.beta(view) for view in views],
            step=step,
            denominator=denominator,
            pad_to_multiple_of=1 if self.device.type == "cpu" else 8,
            packed=self.packed,
        )


def hardest(samples: list[list[Encoded]], losses: list[float]) -> list[list[Encoded]]:
    """Of each sample the view with the largest of `losses`, which has one for each view in order."""
    chosen, first = [], 0
    for views in samples:
        own = losses[first : first + len(views)]
        chosen.append([views[own.index(max(own))]])
        first += len(views)
    return chosen
