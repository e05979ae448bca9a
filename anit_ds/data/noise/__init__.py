"""Noisy instructions: six ways to bend one, and the builder of a data set whose instructions are bent."""

from __future__ import annotations

from anit_ds.data.noise.bending import NoSource, noisy_split
from anit_ds.data.noise.builder import NoisySet, build_noisy_set, read_noisy_set
from anit_ds.data.noise.functions import NOISES, Sources
from anit_ds.data.noise.measuring import estimate_embedding
from anit_ds.data.noise.opposites import opposites_for
from anit_ds.data.noise.recipe import Recipe

__all__ = [
    "NOISES",
    "NoSource",
    "NoisySet",
    "Recipe",
    "Sources",
    "build_noisy_set",
    "estimate_embedding",
    "noisy_split",
    "opposites_for",
    "read_noisy_set",
]
