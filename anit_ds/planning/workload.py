"""The micro-batch that a plan is made for: the longest one of the run's data, or one of `data.max_length` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anit_ds.adversarial import Batch
from anit_ds.config import Config
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.modeling import load_tokenizer
from anit_ds.training.batching import collate

# Where the data are not at hand: a short answer behind an instruction of some twenty words, and what a task's samples
# have in common before it.
_ANSWER, _INSTRUCTION, _SHARED = 8, 24, 48


@dataclass(frozen=True)
class Workload:
    """Training samples, longest first, and how many tokens they have on average."""

    samples: Sequence[Encoded]
    mean_length: float
    known: bool
    """False: the data were not there, and every sample is as long as data.max_length allows."""

    @classmethod
    def of(cls, config: Config) -> Workload:
        """The run's own samples where its data and its tokenizer are at hand."""
        try:
            encoder = PromptEncoder.of(config, load_tokenizer(config.model))
            samples = RunData.load(config, None).train_samples(seed=config.train.seed, epoch=0)
            encoded = encoder.encode([view for views in samples for view in views])
        except InputError:
            made = [made_up(number, config.data.max_length) for number in range(config.train.global_batch)]
            return cls(made, config.data.max_length, known=False)
        return cls(sorted(encoded, key=len, reverse=True), sum(map(len, encoded)) / len(encoded), known=True)

    def micro_batch(self, config: Config, size: int) -> Batch:
        """The `size` longest samples, as the trainer would lay them in a batch; repeated where there are fewer."""
        samples = [self.samples[i % len(self.samples)] for i in range(size)]
        return collate(
            samples, pad_id=0, tokens=config.method.tokens, beta=[0.5] * size, step=0, denominator=1.0,
            packed=config.packs,
        )  # fmt: skip

    def mean_share(self, size: int) -> float:
        """How many tokens a micro-batch has on average, as a share of the longest's."""
        return self.mean_length * size / sum(len(self.samples[i % len(self.samples)]) for i in range(size))


def made_up(number: int, length: int) -> Encoded:
    """A sample of so many tokens, which shares its first ones with the others, its instruction last."""
    prompt = [1] * min(_SHARED, length // 2)
    prompt += [2 + number % 1000] * (length - _ANSWER - len(prompt))
    return Encoded(number, prompt, [3] * _ANSWER, (max(0, len(prompt) - _INSTRUCTION), len(prompt)), 0.5, "")
