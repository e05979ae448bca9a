"""Each noisy sample's d'_i and the set's beta, rule-based or LM-based, on lists and on part files alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import DistanceTally, Normaliser, normaliser
from anit_ds.data.distortion.lm_based import Estimate, LmDistortion
from anit_ds.data.examples import Sample
from anit_ds.data.noise.making import SampleMaker, views_of
from anit_ds.data.noise.recipe import Recipe
from anit_ds.files import blocks

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig

BINS = 10
"""Bars of the manifest's histogram of d'."""


class Measurement(Protocol):
    """Fills in `distortion`; the summary is complete once every training sample has passed."""

    def measured(self, samples: list[Sample]) -> list[Sample]:
        """The samples with their d'_i."""
        ...

    def measured_part(self, part: Path) -> Iterator[bytes]:
        """The bytes of a part file, in pieces, with each sample's d'_i."""
        ...

    def summary(self) -> dict[str, Any]:
        """For the manifest: beta, how it came to be, and the histogram of d' over the noisy samples."""
        ...


def measurement(config: DistortionConfig, tally: DistanceTally) -> Measurement:
    """The configured measurement. `tally` counts the word distances of all noisy samples."""
    if config.kind == "lme":
        return LmMeasurement(LmDistortion(config), config.model)
    return RuleMeasurement(tally, normaliser(tally, config.normalise))


def estimate_embedding(corpus: Corpus, recipe: Recipe) -> Estimate:
    """What the LM-based distortion of this set would cost in calls and tokens; no call is made."""
    maker = SampleMaker.of(corpus, recipe)
    views = (view for example in corpus.train for view in views_of(example, recipe.noise.views))
    samples = (sample for sample, distance in map(maker.training_sample, views) if distance is not None)
    texts = (text for sample in samples for text in (sample.instruction, sample.raw_instruction))
    return LmDistortion(recipe.distortion).estimate(texts)


@dataclass(frozen=True)
class RuleMeasurement:
    """Word edit distances, normalised by what the tally of the whole set says."""

    tally: DistanceTally
    normaliser: Normaliser

    def measured(self, samples: list[Sample]) -> list[Sample]:
        if self._as_made:
            return samples
        minmax = self.normaliser.minmax
        return [s if s.noise == "none" else replace(s, distortion=minmax(s.distance)) for s in samples]

    def measured_part(self, part: Path) -> Iterator[bytes]:
        return blocks(part) if self._as_made else iter([_measured_lines(self, part)])

    def summary(self) -> dict[str, Any]:
        histogram = [0] * BINS
        for distance, count in self.tally.counts.items():
            histogram[_bar(self.normaliser(distance))] += count
        return {
            "beta": self.normaliser.beta(self.tally),
            "normalised_by": self.normaliser.by,
            "why": self.normaliser.why,
            "d_prime": histogram,
        }

    @property
    def _as_made(self) -> bool:
        """A sample is made with its distance by length, so there may be nothing left to fill in."""
        return self.normaliser.by == "length"


@dataclass
class LmMeasurement:
    """Cosine distances of embeddings; the running sum and histogram are all that is kept."""

    lm: LmDistortion
    model: str
    total: float = 0.0
    count: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)

    def measured(self, samples: list[Sample]) -> list[Sample]:
        noisy = [s for s in samples if s.noise != "none"]
        values = self.lm.distances([(s.instruction, s.raw_instruction) for s in noisy])
        for value in values:
            self.total += value
            self.count += 1
            self.histogram[_bar(value)] += 1
        own = {s.id: value for s, value in zip(noisy, values, strict=True)}
        return [replace(s, distortion=own[s.id]) if s.id in own else s for s in samples]

    def measured_part(self, part: Path) -> Iterator[bytes]:
        yield _measured_lines(self, part)

    def summary(self) -> dict[str, Any]:
        return {
            "beta": min(1.0, self.total / max(1, self.count)),
            "normalised_by": "cosine",
            "why": f"1 - cos of embeddings by {self.model}",
            "d_prime": self.histogram,
        }


def _measured_lines(measurement: Measurement, part: Path) -> bytes:
    with part.open("rb") as file:
        samples = measurement.measured([Sample.from_json(line) for line in file])
    return b"".join([sample.to_line() for sample in samples])


def _bar(value: float) -> int:
    return min(BINS - 1, int(value * BINS))
