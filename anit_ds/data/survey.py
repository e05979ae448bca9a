"""What a data set looks like before anything trains on it: its labels, its lengths, and spans that its texts lack.

`survey(data_set, config)` counts tokens with the model's own tokenizer where its tokenizer.json is on this machine,
without torch, and words where it is not. A chat template's own tokens are added to each prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anit_ds.data.examples import Sample
from anit_ds.data.prompts import render_prompt
from anit_ds.data.rundata import DataSet

if TYPE_CHECKING:
    from anit_ds.config import Config, ModelConfig

MOST_MEASURED = 5_000
"""Samples of a split whose lengths are counted, evenly spread over it."""


@dataclass(frozen=True)
class Template:
    """What stands around a prompt: text before and behind it, and how many tokens that is (None in plain style, whose
    special tokens the tokenizer adds by itself)."""

    before: str = ""
    behind: str = " "
    tokens: int | None = None


PLAIN = Template()


@dataclass(frozen=True)
class Lengths:
    """Tokens (or words) of a split's prompts, in training with their answers: the longest `too_long` of `measured`
    exceed the limit and lose the end of their text, but for `left_out`, which exceed it without a text."""

    measured: int
    median: int
    most: int
    """95% are no longer."""
    longest: int
    too_long: int
    left_out: int = 0


@dataclass
class Survey:
    """`prompt` is the first training sample's with its answer; `labels` counts train's items, "None" texts without one;
    `absent` names (sample, span) of spans that do not occur in their text, of `spans` in train."""

    prompt: str
    unit: str
    lengths: dict[str, Lengths] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    spans: int = 0
    absent: list[tuple[str, str]] = field(default_factory=list)


def survey(of: DataSet, config: Config, template: Template | None = PLAIN) -> Survey:
    """Look through a data set once. template: None where it is not known, so that lengths are words without it."""
    unit, lengths_of = _measure(config.model, template)
    train = of.split("train")
    order = config.prompt.order
    around = template or PLAIN
    found = Survey(around.before + render_prompt(train[0], order) + around.behind + train[0].answer, unit)
    for split in ("train", "dev", "test"):
        samples = _spread(of.split(split))
        if samples:
            space = " " if around.tokens is None else ""
            answers = [space + s.answer for s in samples] if split == "train" else []
            found.lengths[split] = _lengths(samples, answers, lengths_of, order, config.data.max_length)
    for sample in islice(train, 0, None, of.views):
        found.labels.update([item[0] for item in sample.items] or ["None"])
        spans = [span for item in sample.items for span in item[1:]]
        found.spans += len(spans)
        found.absent += [(sample.id, span) for span in spans if span not in sample.text]
    return found


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    size = min(len(samples), MOST_MEASURED)
    return [samples[i * len(samples) // size] for i in range(size)]


def _lengths(
    samples: Sequence[Sample],
    answers: Sequence[str],
    lengths_of: Callable[[list[str]], list[int]],
    order: str,
    limit: int,
) -> Lengths:
    """answers: in training each sample's, as it stands behind its prompt."""
    ends = answers or [""] * len(samples)

    def count(asked: Iterable[tuple[Sample, str]]) -> list[int]:
        return [n + bool(answers) for n in lengths_of([render_prompt(s, order) + end for s, end in asked])]  # and EOS

    counts = count(zip(samples, ends, strict=True))
    bare = count((replace(s, text=""), end) for s, end, n in zip(samples, ends, counts, strict=True) if n > limit)
    ordered = sorted(counts)
    size = len(ordered)
    return Lengths(
        size, ordered[size // 2], ordered[min(size - 1, size * 95 // 100)], ordered[-1], len(bare),
        sum(n > limit for n in bare),
    )  # fmt: skip


def _measure(model: ModelConfig, template: Template | None) -> tuple[str, Callable[[list[str]], list[int]]]:
    """What lengths are counted in, and the function that counts them."""
    if template is None:
        return "words without the chat template", lambda texts: [len(text.split()) for text in texts]
    file = _tokenizer_file(model)
    if file is None:
        return "words", lambda texts: [len(text.split()) for text in texts]
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises plain Exception; a file that it cannot read is not this command's business
        return "words", lambda texts: [len(text.split()) for text in texts]
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    more, own = template.tokens or 0, template.tokens is None  # a chat template writes its own BOS
    return "tokens", lambda texts: [
        len(encoding) + more for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=own)
    ]


def _tokenizer_file(model: ModelConfig) -> Path | None:
    """The model's tokenizer.json in its folder or in the hub's cache; nothing is fetched."""
    folder = Path(model.name_or_path)
    if folder.is_dir():
        file = folder / "tokenizer.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.name_or_path, "tokenizer.json", revision=model.revision)
    except HFValidationError:  # no hub id either; training will say so
        return None
    return Path(cached) if isinstance(cached, str) else None
