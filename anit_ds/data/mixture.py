"""Which data sets a configuration names, and what each is made from: a single one is a mixture of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anit_ds.config import Columns
from anit_ds.data.corpora import Corpus, Cut, dataset_info, load_corpus
from anit_ds.data.instructions import Instructions, Version, load_instructions
from anit_ds.data.noise import Recipe
from anit_ds.errors import InputError

if TYPE_CHECKING:
    from anit_ds.config import Config, DataConfig


@dataclass(frozen=True)
class Portion:
    """One data set of a run: its name and place, the version of its instructions, and its weight in the mixture."""

    dataset: str
    path: str | None
    version: Version
    weight: float = 1.0
    instructions_file: str | None = None
    columns: Columns | None = None

    @property
    def own(self) -> Columns | None:
        """The columns of a table of the user's; whoever gives instructions may give the data set a name."""
        return self.columns or (Columns() if self.instructions_file else None)

    def ingredients(self, config: Config, *, epoch: int = 0) -> tuple[Corpus, Recipe]:
        """What the noisy set is made from. Raises InputError for anything wrong in instructions or data."""
        data, instructions = config.data, self.instructions()
        corpus = load_corpus(
            self.dataset,
            self.path,
            task=instructions.task,
            known=instructions.labels,
            own=self.own,
            cut=Cut(data.fraction, data.max_train, data.max_dev, data.max_test),
            seed=config.train.seed,
            on_error=data.on_error,
        )
        recipe = Recipe(
            instructions,
            self.version,
            config.noise,
            config.distortion,
            seed=config.train.seed,
            epoch=epoch,
            paraphrases=data.paraphrases,
            instructions_from=self.instructions_file or f"the instructions of {self.dataset}",
        )
        return corpus, recipe

    def folder(self, data: DataConfig, root: Path) -> Path:
        """Where the set lies under a run's data: in the folder itself, or in one of its own in a mixture."""
        return root / self.dataset if data.mix else root

    def instructions(self) -> Instructions:
        """The data set's instructions. Raises InputError where there are none."""
        name = self.instructions_file or dataset_info(self.dataset, self.own).instructions
        if name is None:
            raise InputError(
                f"data.instructions_file: {self.dataset} has no instructions of its own; give a YAML with them"
            )
        return load_instructions(name)


def portions(data: DataConfig) -> list[Portion]:
    """The data sets of a run, in the order of the configuration. Raises InputError where one is listed twice."""
    if data.dataset:
        return [
            Portion(
                data.dataset,
                data.path,
                data.instructions,
                instructions_file=data.instructions_file,
                columns=data.columns,
            )
        ]
    names = [item.dataset for item in data.mix]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"data.mix: {twice.pop()} is listed twice")
    return [
        Portion(
            item.dataset,
            item.path,
            item.instructions or data.instructions,
            item.weight,
            item.instructions_file or data.instructions_file,
            item.columns,
        )
        for item in data.mix
    ]
