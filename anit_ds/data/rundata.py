"""The data of a run: one data set, or several in a mixture, each with its own instructions, noise and beta.

`RunData.load(config, folder)` is what `anit data` writes and what training and evaluation read. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anit_ds.config import Config, DataConfig, MixItem
from anit_ds.data.corpora import Corpus, Cut, dataset_info, load_corpus
from anit_ds.data.examples import Sample
from anit_ds.data.instructions import Instructions, load_instructions
from anit_ds.data.noise import NoisySet, build_noisy_set, estimate_embedding
from anit_ds.data.tasks import TASKS, Parsed, Task
from anit_ds.errors import InputError


@dataclass(frozen=True)
class DataSet:
    """One data set of a run: its noisy samples, and how its answers are read."""

    name: str
    instructions: Instructions
    version: str
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
        items = _items(config)
        folders = {item.dataset: root / item.dataset if root and config.data.mix else root for item in items}
        return cls([_load_set(config, item, folders[item.dataset], epoch) for item in items])

    @staticmethod
    def estimate(config: Config) -> list[str]:
        """A line a data set: the calls and tokens its LM-based distortion would cost. Makes no call."""
        if config.distortion.kind == "rbe":
            return ["the rule-based distortion asks no model"]
        lines = []
        for item in _items(config):
            instructions, data = _instructions(config, item)
            cost = estimate_embedding(
                _corpus(config, item, instructions),
                instructions,
                data=data,
                noise=config.noise,
                distortion=config.distortion,
                seed=config.train.seed,
            )
            lines.append(f"{item.dataset}: {cost}")
        return lines

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


def _items(config: Config) -> list[MixItem]:
    """The data sets of a run: the mixture's, or the only one."""
    if not config.data.mix:
        return [MixItem(dataset=config.data.dataset or "", path=config.data.path)]
    names = [item.dataset for item in config.data.mix]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"data.mix: {twice.pop()} is listed twice")
    return config.data.mix


def _instructions(config: Config, item: MixItem) -> tuple[Instructions, DataConfig]:
    """A data set's instructions, and the data section with the version it uses."""
    instructions = load_instructions(config.data.instructions_file or _instructions_of(item.dataset))
    version = item.instructions or config.data.instructions
    return instructions, config.data.model_copy(update={"instructions": version})


def _load_set(config: Config, item: MixItem, folder: Path | None, epoch: int) -> DataSet:
    instructions, data = _instructions(config, item)
    noisy = build_noisy_set(
        _corpus(config, item, instructions),
        instructions,
        data=data,
        noise=config.noise,
        distortion=config.distortion,
        seed=config.train.seed,
        epoch=epoch,
        out=folder,
    )
    return DataSet(item.dataset, instructions, data.instructions, noisy, item.weight)


def _instructions_of(dataset: str) -> str:
    name = dataset_info(dataset).instructions
    if name is None:
        raise InputError(f"data.instructions_file: {dataset} has no instructions of its own; give a YAML with them")
    return name


def _corpus(config: Config, item: MixItem, instructions: Instructions) -> Corpus:
    data = config.data
    return load_corpus(
        item.dataset,
        item.path,
        on_error=data.on_error,
        seed=config.train.seed,
        task=instructions.task,
        cut=Cut(data.fraction, data.max_train, data.max_dev, data.max_test),
    )
