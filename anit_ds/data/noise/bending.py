"""An instruction under a noise: what is drawn for its sample, the texts it draws from, and whole splits of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from anit_ds.data.distortion import measure
from anit_ds.data.examples import Example, Sample, hash_of_id
from anit_ds.data.noise.functions import NOISES, Sources
from anit_ds.errors import InputError

POOL_SIZE = 10_000
"""Texts that `padding` draws from: enough variety, and the same memory for a set of any size."""


class NoSource(InputError):
    """A noise that lacks what it draws from, such as `opposite` where the instructions have no opposites."""


class Draw(NamedTuple):
    """A sample's own randomness: the seed of its noise, and a number in [0, 1) that is held against phi."""

    noise_seed: int
    position: float


def draw(seed: int, id: str, epoch: int = 0) -> Draw:
    """A pure function of (run seed, epoch, id), so no sample's noise depends on another sample."""
    drawn = hash_of_id(id, 16, seed=seed.to_bytes(8, "little") + epoch.to_bytes(8, "little"), purpose=b"noise")
    return Draw(int.from_bytes(drawn[:8], "little"), (int.from_bytes(drawn[8:], "little") >> 11) / 2**53)


def running_text(texts: Sequence[Example] | Sequence[Sample]) -> tuple[str, ...]:
    """At most POOL_SIZE of the texts, evenly spread over the set."""
    size = min(len(texts), POOL_SIZE)
    return tuple(texts[i * len(texts) // size].text for i in range(size))


def bend(kind: str, instruction: str, omega: float, noise_seed: int, sources: Sources, text: str) -> str:
    """The instruction under one noise; `text` is the sample's own.

    Raises NoSource when the noise lacks what it draws from.
    """
    try:
        return NOISES[kind](instruction, omega, noise_seed, sources=sources, text=text)
    except ValueError as error:
        raise NoSource(f"noise.kind {kind}: {error}") from error


def noisy_split(
    samples: Iterable[Sample], kind: str, omega: float, seed: int, *, opposites: Sequence[str] = ()
) -> list[Sample]:
    """Dev or test samples with noisy instructions, every one of them, for the score under a noise.

    `opposites` is needed for the noise `opposite` only. A sample's `distortion` is its distance by length.
    Raises NoSource when the noise lacks what it draws from.
    """
    samples = list(samples)
    sources = Sources(running_text=running_text(samples), opposites=opposites)
    return [_bent(sample, kind, omega, seed, sources) for sample in samples]


def _bent(sample: Sample, kind: str, omega: float, seed: int, sources: Sources) -> Sample:
    noise_seed = draw(seed, sample.id).noise_seed
    noisy = bend(kind, sample.raw_instruction, omega, noise_seed, sources, sample.text)
    distance = measure(noisy, sample.raw_instruction)
    return replace(sample, instruction=noisy, noise=kind, distance=distance.words, distortion=distance.by_length)
