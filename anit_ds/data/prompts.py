"""From a `Sample` to tokens: the prompt of docs/method.md section 1, in plain fields or inside the tokenizer's chat
template.

    Instruction: Decide whether the review is positive or negative.
    Question: What is the sentiment of the sentence?
    Format: one label, nothing else.
    Option: positive, negative
    Text: a stirring , funny and finally transporting re-imagining
    Answer: positive<eos>

Prompt and answer are tokenised apart and concatenated, exactly as generation sees them. A sample that is too long loses
the end of its text, never of its instruction or answer, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from anit_ds.data.examples import Sample, sample_key
from anit_ds.errors import InputError

if TYPE_CHECKING:
    from anit_ds.config import Config

ORDERS: dict[str, tuple[str, ...]] = {
    "paper": ("instruction", "question", "format", "options", "text"),
    "instruction_last": ("question", "format", "options", "text", "instruction"),
}
_TITLES = {
    "instruction": "Instruction", "question": "Question", "format": "Format", "options": "Option", "text": "Text",
}  # fmt: skip
_TOKENIZED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised sample: its key (see `sample_key`), prompt and answer as token ids, and what training weighs it by.

    `answer` ends with EOS; tokens `instruction[0]` to `instruction[1]` of `prompt` are the instruction.
    """

    key: int
    prompt: list[int]
    answer: list[int]
    instruction: tuple[int, int]
    distortion: float
    dataset: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def render_prompt(sample: Sample, order: str = "paper") -> str:
    """One field per line, ending in `Answer:` without a trailing space."""
    lines = [f"{_TITLES[name]}: {getattr(sample, name)}" for name in ORDERS[order]]
    return "\n".join([*lines, "Answer:"])


class PromptEncoder:
    """Tokenises samples for one model, for training and evaluation alike.

    `truncated` counts the training samples whose text was cut. Raises InputError for a tokenizer that is not a fast one
    (no character offsets), has no EOS, or has no chat template where `style` is "chat".
    """

    def __init__(self, tokenizer: Any, *, style: str = "plain", order: str = "paper", max_length: int = 512) -> None:
        name = getattr(tokenizer, "name_or_path", "the tokenizer")
        if not tokenizer.is_fast:
            raise InputError(f"model.name_or_path: {name} has no fast tokenizer, which the instruction's place needs")
        if tokenizer.eos_token_id is None:
            raise InputError(f"model.name_or_path: the tokenizer of {name} has no EOS token to end an answer with")
        if style == "chat" and not getattr(tokenizer, "chat_template", None):
            raise InputError(f"prompt.style: {name} has no chat template; use prompt.style=plain")
        self.tokenizer, self.style, self.order, self.max_length = tokenizer, style, order, max_length
        self.truncated = 0

    @classmethod
    def of(cls, config: Config, tokenizer: Any) -> PromptEncoder:
        """The encoder that a run's configuration asks for."""
        return cls(tokenizer, style=config.prompt.style, order=config.prompt.order, max_length=config.data.max_length)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Prompt and answer of training samples, at most max_length tokens together."""
        return [e for chunk in _chunks(samples) for e in self._encode(chunk, with_answer=True)]

    def encode_prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Prompts to be answered, each at most max_length tokens."""
        return [e.prompt for chunk in _chunks(samples) for e in self._encode(chunk, with_answer=False)]

    def _encode(self, samples: list[Sample], *, with_answer: bool) -> list[Encoded]:
        answers = self._answers(samples) if with_answer else [[] for _ in samples]
        encoded = []
        for sample, (ids, span), answer in zip(samples, self._prompts(samples), answers, strict=True):
            if len(ids) + len(answer) > self.max_length:
                ids, span = self._cut_text(sample, room=self.max_length - len(answer))
                self.truncated += with_answer
            encoded.append(Encoded(sample_key(sample.id), ids, answer, span, sample.distortion, sample.dataset))
        return encoded

    def _answers(self, samples: list[Sample]) -> list[list[int]]:
        space = " " if self.style == "plain" else ""
        texts = [space + sample.answer for sample in samples]
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [[*answer, self.tokenizer.eos_token_id] for answer in ids]

    def _prompts(self, samples: list[Sample]) -> list[tuple[list[int], tuple[int, int]]]:
        """Each sample's prompt as token ids, and where among them its instruction is."""
        texts = [self._text(sample) for sample in samples]
        batch = self.tokenizer(
            [text for text, _ in texts],
            add_special_tokens=self.style == "plain",  # a chat template writes its own
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        prompts = []
        for sample, (_, start), ids, offsets in zip(
            samples, texts, batch["input_ids"], batch["offset_mapping"], strict=True
        ):
            if self.style == "plain" and ids[-1] == self.tokenizer.eos_token_id:
                ids, offsets = ids[:-1], offsets[:-1]  # some tokenizers close every sequence; a prompt stays open
            prompts.append((ids, _token_span(offsets, start, start + len(sample.instruction))))
        return prompts

    def _text(self, sample: Sample) -> tuple[str, int]:
        """The prompt as text, and the character at which the instruction begins.

        The order of the fields, not a search for the words, finds it: a text may well contain "Instruction: ".
        """
        text = plain = render_prompt(sample, self.order)
        if self.style == "chat":
            message = [{"role": "user", "content": plain}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before = text.index(plain) if plain in text else 0
        first = len(f"{_TITLES['instruction']}: ")
        last = len(plain) - len("\nAnswer:") - len(sample.instruction)
        return text, before + (first if self.order == "paper" else last)

    def _cut_text(self, sample: Sample, room: int) -> tuple[list[int], tuple[int, int]]:
        """The prompt with the longest beginning of the text that fits into `room` tokens."""
        offsets = self.tokenizer(sample.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        keep = len(offsets)
        ids, span = self._prompts([sample])[0]
        while len(ids) > room:
            if keep == 0:
                raise InputError(
                    f"data.max_length: sample {sample.id} needs {len(ids)} tokens for its prompt without any text, "
                    f"and {room} are left beside its answer; raise data.max_length"
                )
            # Tokens at the cut may merge anew, so cut, tokenise again, and cut what is still too long.
            keep = max(0, keep - (len(ids) - room))
            text = sample.text[: offsets[keep - 1][1]].rstrip() if keep else ""
            ids, span = self._prompts([replace(sample, text=text)])[0]
        return ids, span


def _token_span(offsets: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens that overlap characters start to stop."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _TOKENIZED_AT_ONCE)):
        yield chunk
