"""From an example to a sample: its instruction, perhaps noisy, and the other parts of its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import Distance, DistanceTally, measure
from anit_ds.data.examples import Example, Sample, view_id
from anit_ds.data.instructions import Instructions
from anit_ds.data.noise.bending import bend, draw, running_text
from anit_ds.data.noise.functions import Sources
from anit_ds.data.noise.opposites import opposites_for
from anit_ds.data.noise.recipe import Recipe
from anit_ds.data.tasks import TASKS
from anit_ds.errors import InputError


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of one data set; the same example always becomes the same sample.

    A training sample is noisy when its own number lies below phi, so each is decided by itself and the noisy ones
    at a smaller phi are noisy at a larger one; the share that comes out is phi up to chance and is in the manifest.
    Light, because it is sent to other processes: the corpus stays where it is.
    """

    dataset: str
    recipe: Recipe
    sources: Sources

    @classmethod
    def of(cls, corpus: Corpus, recipe: Recipe) -> SampleMaker:
        """The maker of a corpus's samples. Raises InputError for a label or task that the instructions do not know."""
        _check_task(corpus, recipe.instructions)
        opposites = opposites_for(recipe.instructions, recipe.version, recipe.noise)
        return cls(corpus.dataset, recipe, Sources(running_text=running_text(corpus.train), opposites=opposites))

    def training_sample(self, example: Example) -> tuple[Sample, Distance | None]:
        """A training sample and how far its instruction was bent, None for a raw one.

        Its `distortion` is the distance divided by the longer instruction's words until a set is normalised.
        """
        recipe, noise = self.recipe, self.recipe.noise
        raw = recipe.instructions.pick(recipe.version, recipe.seed, example.id, recipe.paraphrases)
        noise_seed, position = draw(recipe.seed, example.id, recipe.epoch)
        if noise.kind == "none" or position >= noise.phi:
            return self._sample(example, raw), None
        noisy = bend(noise.kind, raw, noise.omega, noise_seed, self.sources, example.text)
        distance = measure(noisy, raw)
        return self._sample(example, raw, noisy, distance), distance

    def evaluation_sample(self, example: Example) -> Sample:
        """A dev or test sample: the first paraphrase, raw."""
        return self._sample(example, self.recipe.instructions.first(self.recipe.version))

    def _sample(self, example: Example, raw: str, noisy: str | None = None, distance: Distance | None = None) -> Sample:
        instructions = self.recipe.instructions
        return Sample(
            id=example.id,
            dataset=self.dataset,
            text=example.text,
            items=example.items,
            instruction=raw if noisy is None else noisy,
            raw_instruction=raw,
            question=instructions.question,
            format=instructions.format,
            options=instructions.options,
            answer=TASKS[instructions.task].render(example.items, instructions.labels),
            noise="none" if distance is None else self.recipe.noise.kind,
            distance=0 if distance is None else distance.words,
            distortion=0.0 if distance is None else distance.by_length,
        )


def training_samples(maker: SampleMaker, examples: Iterable[Example], tally: DistanceTally) -> Iterator[Sample]:
    """The training samples of some examples; each noisy one's distance is added to `tally` as it is made."""
    for example in examples:
        for view in views_of(example, maker.recipe.noise.views):
            sample, distance = maker.training_sample(view)
            if distance is not None:
                tally.add(distance)
            yield sample


def views_of(example: Example, views: int) -> Iterator[Example]:
    """The example `views` times, each under an id of its own: what is drawn for one is not drawn for another."""
    for number in range(views):
        yield replace(example, id=view_id(example.id, number)) if number else example


def _check_task(corpus: Corpus, instructions: Instructions) -> None:
    if corpus.task not in (None, instructions.task):
        raise InputError(f"{corpus.dataset} is for {corpus.task}, but its instructions are for {instructions.task}")
