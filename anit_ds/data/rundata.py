"""The data of a run: one data set, or several in a mixture, each with its own instructions, noise and beta.

`RunData.load(config, folder)` is what `anit data` writes and what training reads; `RunData.stored(config, folder)` is
what was written there, for whoever has the folder alone.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anit_ds.data.examples import Sample, hash_of_id
from anit_ds.data.instructions import Instructions, Version
from anit_ds.data.mixture import portions
from anit_ds.data.noise import NoisySet, build_noisy_set, estimate_embedding, opposites_for, read_noisy_set
from anit_ds.data.noise.manifest import MANIFEST, identity_of
from anit_ds.data.tasks import TASKS, Parsed, Task
from anit_ds.sealed import Damaged, read_sealed

if TYPE_CHECKING:
    from anit_ds.config import Config, NoiseConfig

logger = logging.getLogger(__name__)


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

    def asked(self, text: str, id: str = "") -> Sample:
        """A text to be answered: the prompt is that of dev and test, and there is no gold answer."""
        instruction = self.instructions.first(self.version)
        return Sample(
            id=id,
            dataset=self.name,
            text=text,
            items=(),
            instruction=instruction,
            raw_instruction=instruction,
            noise="none",
            question=self.instructions.question,
            format=self.instructions.format,
            options=self.instructions.options,
            answer="",
            distance=0,
            distortion=0.0,
        )

    @property
    def views(self) -> int:
        """How many samples in a row of the training split are one text under different instructions."""
        views: int = self.noisy.manifest["noise"].get("views", 1)
        return views

    def split(self, name: str) -> Sequence[Sample]:
        """Samples of train, dev or test."""
        samples: Sequence[Sample] = getattr(self.noisy, name)
        return samples

    def notes(self, split: str) -> list[str]:
        """What a reader of a score on dev or test must know: nothing that concerns the test split alone for dev."""
        notes: list[str] = self.noisy.manifest["notes"]
        return [note for note in notes if split == "test" or not note.startswith("test: ")]

    def opposites(self, noise: NoiseConfig) -> list[str]:
        """What the noise `opposite` draws from: what the set was made with, else what `noise` says."""
        if self.noisy.manifest.get("opposites"):
            return list(self.noisy.manifest["opposites"])
        return opposites_for(self.instructions, self.version, noise.model_copy(update={"kind": "opposite"}))


@dataclass(frozen=True)
class RunData:
    """The data sets of a run, in the order of the configuration."""

    sets: list[DataSet]

    @classmethod
    def load(
        cls, config: Config, folder: Path | None, *, epoch: int = 0, begun: Mapping[str, str] | None = None
    ) -> RunData:
        """Read, bend and measure every data set; with a folder, write what `anit data` promises, or reuse it.

        A single data set lies in the folder itself, those of a mixture in folder/NAME. Noise drawn anew for a later
        epoch (`noise.resample: epoch`) lies in folder/epoch-NNN. `begun`: the `identities` of what a run in this folder
        has begun with (those that lie there, where it does not name them). Raises InputError for anything wrong in the
        data, and where they are not those.
        """
        if folder is not None and begun is not None:
            begun = {**_stored_identities(config, folder), **begun}
        root = folder / f"epoch-{epoch:03d}" if folder and epoch else folder
        sets = []
        for portion in portions(config.data):
            corpus, recipe = portion.ingredients(config, epoch=epoch)
            own = portion.folder(config.data, root) if root else None
            identity = (begun or {}).get(portion.dataset)
            noisy = build_noisy_set(corpus, recipe, out=own, begun=identity)
            if epoch == 0:
                for note in noisy.manifest["notes"]:
                    logger.info("%s: %s", portion.dataset, note)
            sets.append(DataSet(portion.dataset, recipe.instructions, recipe.version, noisy, portion.weight))
        if epoch == 0:
            for note in _texts_across(sets):
                logger.warning(note)
        return cls(sets)

    @classmethod
    def stored(cls, config: Config, folder: Path) -> RunData:
        """What `load` wrote into a folder, without the data's source. Nothing is written.

        Raises InputError: no data there, or damaged ones (a split's own file when it is used).
        """
        sets = []
        for portion in portions(config.data):
            noisy = read_noisy_set(portion.folder(config.data, folder))
            instructions = Instructions.model_validate(noisy.manifest["prompt"])
            sets.append(DataSet(portion.dataset, instructions, portion.version, noisy, portion.weight))
        return cls(sets)

    @property
    def identities(self) -> dict[str, str]:
        """Of each data set, one hash of everything that a run may not change under way."""
        return {s.name: identity_of(s.noisy.manifest) for s in self.sets}

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

    def train_samples(self, *, seed: int, epoch: int) -> list[list[Sample]]:
        """The training samples of an epoch, each as the list of its views: all of each set, or as often as its weight
        in the mixture says."""
        samples: list[list[Sample]] = []
        for number, data_set in enumerate(self.sets):
            train, views = data_set.split("train"), data_set.views
            whole, part = divmod(data_set.weight, 1.0)
            if whole:
                samples += [list(group) for group in zip(*[iter(train)] * views, strict=True)] * int(whole)
            if part:
                size = len(train) // views
                drawn = np.random.default_rng([seed, epoch, number]).permutation(size)
                samples += [list(train[i * views : (i + 1) * views]) for i in sorted(drawn[: round(part * size)])]
        return samples


def _texts_across(sets: Sequence[DataSet]) -> list[str]:
    """What to say of texts of one set's dev and test on which a mixture trains in another set."""
    if len(sets) < 2:
        return []
    trained = {s.name: {hash_of_id(sample.text, 8) for sample in s.split("train")} for s in sets}
    notes = []
    for asked, split in product(sets, ("dev", "test")):
        texts = [hash_of_id(sample.text, 8) for sample in asked.split(split)]
        for other in sets:
            if other is not asked and (both := sum(text in trained[other.name] for text in texts)):
                where = f"stand in the train of {other.name}"
                notes.append(f"{asked.name}: {both} of {len(texts)} texts of {split} {where}")
    return notes


def _stored_identities(config: Config, folder: Path) -> dict[str, str]:
    """The `identities` of those sets in a folder whose manifest can be read."""
    found = {}
    for portion in portions(config.data):
        with suppress(Damaged, KeyError, TypeError):
            found[portion.dataset] = identity_of(read_sealed(portion.folder(config.data, folder) / MANIFEST))
    return found


def forget_epochs(folder: Path, but: set[int]) -> None:
    """Remove folder/epoch-NNN of all epochs but some."""
    for path in folder.glob("epoch-*"):
        number = path.name.removeprefix("epoch-")
        if re.fullmatch("[0-9]{3,}", number) and int(number) not in but:
            shutil.rmtree(path, ignore_errors=True)  # NFS keeps a file that another rank still has open
