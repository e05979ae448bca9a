"""How a data set becomes a noisy one, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anit_ds.data.instructions import Instructions, Version

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig, NoiseConfig


@dataclass(frozen=True)
class Recipe:
    """What the noisy set follows from, apart from the corpus: one corpus and one recipe make one set, to the last bit.

    `version` and `paraphrases` (all by default) say which of the instructions are used. `epoch` draws other noise from
    the same seed (`noise.resample: epoch`). `instructions_from` says in a message where the instructions stand.
    """

    instructions: Instructions
    version: Version
    noise: NoiseConfig
    distortion: DistortionConfig
    seed: int
    epoch: int = 0
    paraphrases: int | None = None
    instructions_from: str = "the instructions"
