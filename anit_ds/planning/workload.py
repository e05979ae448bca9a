"""The micro-batch that a plan is made for: the longest one of the run's data, or one of `data.max_length` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anit_ds.adversarial import Batch
from anit_ds.config import Config
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.modeling import load_tokenizer
from anit_ds.training.batching import Split, collate, deal

# Where the data are not at hand: a short answer behind an instruction of some twenty words, and what a task's samples
# have in common before it.
_ANSWER, _INSTRUCTION, _SHARED = 8, 24, 48
_DRAWS = 8  # global batches whose slowest rank is looked for


@dataclass(frozen=True)
class Workload:
    """Training samples, longest first."""

    samples: Sequence[Encoded]
    missing: str = ""
    """Why these are not the run's own: then every sample is as long as data.max_length allows."""

    @classmethod
    def of(cls, config: Config) -> Workload:
        """The run's own samples where its data and its tokenizer are at hand."""
        try:
            encoder = PromptEncoder.of(config, load_tokenizer(config.model))
            samples = RunData.load(config, None).train_samples(seed=config.train.seed, epoch=0)
            encoded = encoder.encode([view for views in samples for view in views])
        except InputError as error:
            made = [made_up(number, config.data.max_length) for number in range(config.train.global_batch)]
            return cls(made, missing=str(error))
        return cls.of_samples(encoded)

    @classmethod
    def of_samples(cls, encoded: Sequence[Encoded]) -> Workload:
        return cls(sorted(encoded, key=len, reverse=True))

    def micro_batch(self, config: Config, size: int) -> Batch:
        """The `size` longest samples, as the trainer would lay them in a batch; repeated where there are fewer."""
        samples = [self.samples[i % len(self.samples)] for i in range(size)]
        return collate(
            samples, pad_id=0, tokens=config.method.tokens, attack_none=config.method.attack_none, beta=[0.5] * size,
            step=0, denominator=1.0, packed=config.packs,
        )  # fmt: skip

    def slowest_share(self, global_batch: int, split: Split, ranks: int, *, lockstep: bool) -> float:
        """Padded tokens that the slowest rank computes in a step, relative to full micro-batches of the longest sample.

        The mean of some global batches drawn from the samples and dealt out as the trainer does. lockstep: the ranks
        wait for each other in every micro-batch, as the gathers of ZeRO 3 make them, and not only at the step's end.
        """
        lengths, rng, slowest = [len(sample) for sample in self.samples], np.random.default_rng(0), []
        for _ in range(_DRAWS):
            drawn = rng.choice(len(lengths), global_batch)
            dealt = deal(drawn, lengths, ranks=ranks, micro_batches=split.micro_batches)
            tokens = np.array([[len(part) * lengths[part[0]] if len(part) else 1 for part in row] for row in dealt])
            slowest.append(tokens.max(axis=1).sum() if lockstep else tokens.sum(axis=0).max())
        return float(np.mean(slowest)) / (split.micro_batches * split.samples * lengths[0])


def made_up(number: int, length: int) -> Encoded:
    """A sample of so many tokens, which shares its first ones with the others; then its text, its instruction last."""
    shared = min(_SHARED, length // 2)
    prompt = [1] * shared + [2 + number % 1000] * (length - _ANSWER - shared)
    instruction = max(0, len(prompt) - _INSTRUCTION)
    text = (min(shared, instruction), instruction)
    return Encoded(number, prompt, [3] * _ANSWER, (instruction, len(prompt)), text, 0.5, "")
