"""The data of a run: one data set, or several in a mixture, each with its own instructions, noise and beta.

`RunData.load(config, folder)` is what `anit data` writes and what training and evaluation read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anit_ds.data.examples import Sample
from anit_ds.data.instructions import Instructions, Version
from anit_ds.data.mixture import portions
from anit_ds.data.noise import NoisySet, build_noisy_set, estimate_embedding
from anit_ds.data.tasks import TASKS, Parsed, Task

if TYPE_CHECKING:
    from anit_ds.config import Config

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """One data set of a run: its noisy samples, and how its answers are read."""

    name: str
    instructions: Instructions
    version: Version
    noisy: NoisySet
    weight: float = 1.0

    @property
    def task(self) -> Task:
        return TASKS[self.instructions.task]

    def parse(self, answer: str) -> Parsed:
        """The items an answer states, with the data set's raw labels. Never raises."""
        return self.task.parse(answer, self.instructions.labels)

    def split(self, name: str) -> Sequence[Sample]:
        """Samples of train, dev or test."""
        samples: Sequence[Sample] = getattr(self.noisy, name)
        return samples


@dataclass(frozen=True)
class RunData:
    """The data sets of a run, in the order of the configuration."""

    sets: list[DataSet]

    @classmethod
    def load(cls, config: Config, folder: Path | None, *, epoch: int = 0) -> RunData:
        """Read, bend and measure every data set; with a folder, write what `anit data` promises, or reuse it.

        A single data set lies in the folder itself, those of a mixture in folder/NAME. Noise drawn anew for a later
        epoch (`noise.resample: epoch`) lies in folder/epoch-NNN. Raises InputError for anything wrong in the data.
        """
        root = folder / f"epoch-{epoch:03d}" if folder and epoch else folder
        sets = []
        for portion in portions(config.data):
            corpus, recipe = portion.ingredients(config, epoch=epoch)
            own = root / portion.dataset if root and config.data.mix else root
            noisy = build_noisy_set(corpus, recipe, out=own)
            if epoch == 0:
                for note in noisy.manifest["notes"]:
                    _logger.info("%s: %s", portion.dataset, note)
            sets.append(DataSet(portion.dataset, recipe.instructions, recipe.version, noisy, portion.weight))
        return cls(sets)

    @staticmethod
    def estimate(config: Config) -> list[str]:
        """One line per data set: the calls and tokens its LM-based distortion would cost. Makes no call."""
        if config.distortion.kind == "rbe":
            return ["the rule-based distortion asks no model"]
        return [
            f"{portion.dataset}: {estimate_embedding(*portion.ingredients(config))}"
            for portion in portions(config.data)
        ]

    def __getitem__(self, name: str) -> DataSet:
        return next(s for s in self.sets if s.name == name)

    @property
    def betas(self) -> dict[str, float]:
        """beta of each data set, in [0, 1]."""
        return {s.name: s.noisy.beta for s in self.sets}

    def train_samples(self, *, seed: int, epoch: int) -> list[Sample]:
        """The training samples of an epoch: all of each set, or as often as its weight in the mixture says."""
        samples: list[Sample] = []
        for number, data_set in enumerate(self.sets):
            train = data_set.split("train")
            whole, part = divmod(data_set.weight, 1.0)
            samples += list(train) * int(whole)
            if part:
                drawn = np.random.default_rng([seed, epoch, number]).permutation(len(train))
                samples += [train[i] for i in sorted(drawn[: round(part * len(train))])]
        return samples
