"""From an example to a sample: its instruction, perhaps noisy, and the other parts of its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from anit_ds.data.distortion import DistanceTally
from anit_ds.data.distortion.rule_based import Distance, measure
from anit_ds.data.examples import Example, Sample
from anit_ds.data.instructions import Instructions, Version
from anit_ds.data.noise.functions import NOISES, Sources
from anit_ds.data.tasks import TASKS
from anit_ds.errors import InputError

POOL_SIZE = 10_000
"""Texts that `padding` draws from: enough variety, and the same memory for a set of any size."""


class Draw(NamedTuple):
    """A sample's own randomness: the seed of its noise, and a number in [0, 1) that is held against phi."""

    noise_seed: int
    position: float


def draw(run_seed: int, sample_id: str, epoch: int = 0) -> Draw:
    """A pure function of (run seed, epoch, sample id), so no sample's noise depends on another sample."""
    key = run_seed.to_bytes(8, "little") + epoch.to_bytes(8, "little")
    id = sample_id.encode("utf-8", "surrogatepass")
    digest = blake2b(id, digest_size=16, key=key, person=b"noise").digest()
    return Draw(int.from_bytes(digest[:8], "little"), (int.from_bytes(digest[8:], "little") >> 11) / 2**53)


def running_text(texts: Sequence[Example] | Sequence[Sample]) -> tuple[str, ...]:
    """At most POOL_SIZE of the texts, evenly spread over the set."""
    size = min(len(texts), POOL_SIZE)
    return tuple(texts[i * len(texts) // size].text for i in range(size))


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of one data set; the same example always becomes the same sample.

    A training sample is noisy when its own number lies below `phi`, so each is decided by itself and the noisy ones
    at a smaller phi are noisy at a larger one; the share that comes out is phi up to chance and is in the manifest.
    """

    dataset: str
    instructions: Instructions
    version: Version
    paraphrases: int | None
    kind: str
    omega: float
    phi: float
    seed: int
    epoch: int = 0
    sources: Sources = field(default_factory=Sources)

    def train(self, example: Example) -> tuple[Sample, Distance | None]:
        """A training sample and how far its instruction was bent, None for a raw one.

        Its `distortion` is the distance divided by the longer instruction's words until a set is normalised.
        """
        raw = self.instructions.pick(self.version, self.seed, example.id, self.paraphrases)
        noise_seed, position = draw(self.seed, example.id, self.epoch)
        if self.kind == "none" or position >= self.phi:
            return self._sample(example, raw), None
        noisy = bend(self.kind, raw, self.omega, noise_seed, self.sources, example.text)
        distance = measure(noisy, raw)
        return self._sample(example, raw, noisy, distance), distance

    def evaluation(self, example: Example) -> Sample:
        """A dev or test sample: the first paraphrase, raw."""
        return self._sample(example, self.instructions.first(self.version))

    def _sample(self, example: Example, raw: str, noisy: str | None = None, distance: Distance | None = None) -> Sample:
        return Sample(
            id=example.id,
            dataset=self.dataset,
            text=example.text,
            items=example.items,
            instruction=raw if noisy is None else noisy,
            raw_instruction=raw,
            question=self.instructions.question,
            format=self.instructions.format,
            options=self.instructions.options,
            answer=TASKS[self.instructions.task].render(example.items, self.instructions.labels),
            noise="none" if distance is None else self.kind,
            distance=0 if distance is None else distance.words,
            distortion=0.0 if distance is None else distance.by_length,
        )


def bend(kind: str, instruction: str, omega: float, noise_seed: int, sources: Sources, text: str) -> str:
    """The instruction under one noise. Raises InputError when the noise lacks what it draws from."""
    try:
        return NOISES[kind](instruction, omega, noise_seed, sources=sources, text=text)
    except ValueError as error:
        raise InputError(f"noise.kind {kind}: {error}") from error


def training_samples(maker: SampleMaker, examples: Iterable[Example], tally: DistanceTally) -> Iterator[Sample]:
    """The training samples of some examples; each noisy one's distance is added to `tally` as it is made."""
    for example in examples:
        sample, distance = maker.train(example)
        if distance is not None:
            tally.add(distance)
        yield sample
