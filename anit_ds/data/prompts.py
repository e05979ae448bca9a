"""From a `Sample` to tokens: the prompt of docs/method.md section 1, in plain fields or inside the tokenizer's chat
template.

    Instruction: Decide whether the review is positive or negative.
    Question: What is the sentiment of the sentence?
    Format: one label, nothing else.
    Option: positive, negative
    Text: a stirring , funny and finally transporting re-imagining
    Answer: positive<eos>

Prompt and answer are tokenised apart and concatenated, exactly as generation sees them. A sample that is too long loses
the end of its text, never of its instruction or answer, and is counted. What a text says is what the model reads: none
of it becomes a control token, and a chat template that changes it is refused.
"""

from __future__ import annotations

import json
import logging
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from anit_ds.data.examples import Sample, sample_key, text_id
from anit_ds.data.plaintext import PlainText
from anit_ds.errors import InputError, first_line, shown

if TYPE_CHECKING:
    from anit_ds.config import Config

logger = logging.getLogger(__name__)

_ALWAYS = date(2024, 7, 26)  # what Llama 3.2's template says where it cannot ask

ORDERS: dict[str, tuple[str, ...]] = {
    "paper": ("instruction", "question", "format", "options", "text"),
    "instruction_last": ("question", "format", "options", "text", "instruction"),
}
_TITLES = {
    "instruction": "Instruction", "question": "Question", "format": "Format", "options": "Option", "text": "Text",
}  # fmt: skip
_TOKENIZED_AT_ONCE = 1000


Span = tuple[int, int]  # the tokens from the first number up to the second


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised sample: its key (see `sample_key`), prompt and answer as token ids, and what training weighs it by.

    A run's ids are arrays: a list takes nine times the memory, on every rank. `answer` ends with EOS; tokens
    `instruction[0]` to `instruction[1]` of `prompt` are the instruction, and `text[0]` to `text[1]` the text.
    `is_none`: there is nothing to find, the answer is None.
    """

    key: int
    prompt: Sequence[int]
    answer: Sequence[int]
    instruction: Span
    text: Span
    distortion: float
    dataset: str
    is_none: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class _Prompt(NamedTuple):
    ids: list[int]
    instruction: Span
    text: Span


def render_prompt(sample: Sample, order: str = "paper") -> str:
    """One field per line, ending in `Answer:` without a trailing space."""
    lines = [f"{_TITLES[name]}: {getattr(sample, name)}" for name in ORDERS[order]]
    return "\n".join([*lines, "Answer:"])


def timeless(template: str) -> str:
    """A chat template in which it is always the same day: Llama 3.2's and others write today's date into a prompt, and
    a run that goes on tomorrow, or is evaluated then, would have another one."""
    forms = set(re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", template))
    if not forms:
        return template
    days = json.dumps({form: _ALWAYS.strftime(form) for form in sorted(forms)})
    return f"{{%- macro strftime_now(form) -%}}{{{{ {days}[form] }}}}{{%- endmacro -%}}\n{template}"


class NoRoom(InputError):
    """A prompt that is too long even without its text."""


class PromptEncoder:
    """Tokenises samples for one model, for training and evaluation alike.

    `cut` names the samples of train, dev and test whose text was cut, `left_out` the training samples whose answer left
    no room for their prompt; a sample counts once, however often it is tokenised. Raises InputError for a tokenizer
    that is not a fast one (no character offsets), has no EOS, or has no chat template where `style` is "chat".
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
        self.cut: dict[str, set[int]] = defaultdict(set)
        self.left_out: set[int] = set()
        self._plain = PlainText(tokenizer)
        self._template = timeless(tokenizer.chat_template) if style == "chat" else None
        self._blank = " " if style == "plain" and self._needs_blank() else ""

    @classmethod
    def of(cls, config: Config, tokenizer: Any) -> PromptEncoder:
        """The encoder that a run's configuration asks for."""
        return cls(tokenizer, style=config.prompt.style, order=config.prompt.order, max_length=config.data.max_length)

    def _needs_blank(self) -> bool:
        """Whether " a" is what stands behind a prompt's colon in "Answer: a". Not where a tokenizer puts a blank of its
        own before any text (Mistral's, Phi-3's): with a second one an answer would begin with an empty word."""
        whole, bare, spaced = (list(of.ids) for of in self._plain.tokens(["Answer: a", "a", " a"]))
        return whole[-len(spaced) :] == spaced or whole[-len(bare) :] != bare

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Prompt and answer of training samples, at most max_length tokens together.

        A sample whose answer leaves no room for its prompt even without a text is left out and counted. Raises
        InputError where that is all of them.
        """
        known = len(self.left_out)
        encoded = [e for chunk in _chunks(samples) for e in self._encode_answered(chunk)]
        if len(self.left_out) > known:
            logger.warning(
                "%d training samples are left out: their answers leave no room for their prompts in data.max_length %d",
                len(self.left_out), self.max_length,
            )  # fmt: skip
        if samples and not encoded:
            (answer,) = self.encode_answers([samples[0].answer])
            self._cut_text(samples[0], room=self.max_length - len(answer))
        return encoded

    def encode_prompts(self, samples: Sequence[Sample], split: str = "") -> list[list[int]]:
        """Prompts to be answered, each at most max_length tokens; cut ones count under `split` (dev or test)."""
        prompts = []
        for chunk in _chunks(samples):
            for sample, prompt in zip(chunk, self._prompts(chunk), strict=True):
                if len(prompt.ids) > self.max_length:
                    prompt = self._cut_text(sample, room=self.max_length)
                    self.cut[split].add(sample_key(sample.id))
                prompts.append(prompt.ids)
        return prompts

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Answers as the model is to say them behind a prompt, ended by EOS."""
        return [[*of.ids, self.tokenizer.eos_token_id] for of in self._plain.tokens([self._blank + a for a in answers])]

    def _encode_answered(self, samples: list[Sample]) -> Iterator[Encoded]:
        answers = self.encode_answers([sample.answer for sample in samples])
        for sample, prompt, answer in zip(samples, self._prompts(samples), answers, strict=True):
            of_text = sample_key(text_id(sample.id))
            if len(prompt.ids) + len(answer) > self.max_length:
                try:
                    prompt = self._cut_text(sample, room=self.max_length - len(answer))
                except NoRoom:
                    self.left_out.add(of_text)
                    continue
                self.cut["train"].add(of_text)
            yield Encoded(
                sample_key(sample.id), array("i", prompt.ids), array("i", answer), prompt.instruction, prompt.text,
                sample.distortion, sample.dataset, not sample.items,
            )  # fmt: skip

    def _prompts(self, samples: list[Sample]) -> list[_Prompt]:
        """Each sample's prompt as token ids, and where among them its instruction and its text are."""
        plain = [render_prompt(sample, self.order) for sample in samples]
        if self.style == "chat":
            texts = [self._in_template(sample, text) for sample, text in zip(samples, plain, strict=True)]
            begins = [text.index(own) for text, own in zip(texts, plain, strict=True)]
            places = [(begin, begin + len(own)) for begin, own in zip(begins, plain, strict=True)]
            made = self._plain.tokens_inside(texts, places)  # a chat template writes its own BOS
        else:
            begins = [0] * len(plain)
            made = self._plain.tokens(plain, add_special_tokens=True)
        prompts = []
        for sample, begin, (ids, offsets) in zip(samples, begins, made, strict=True):
            if self.style == "plain" and ids[-1] == self.tokenizer.eos_token_id:
                ids, offsets = ids[:-1], offsets[:-1]  # some tokenizers close every sequence; a prompt stays open
            instruction, text = (
                _token_span(offsets, start, start + len(getattr(sample, field)))
                for field, start in self._places(sample, begin)
            )
            prompts.append(_Prompt(ids, instruction, text))
        return prompts

    def _places(self, sample: Sample, begin: int) -> Iterator[tuple[str, int]]:
        """Instruction and text with the characters at which they begin in a plain prompt that begins at `begin`.

        The order of the fields, not a search for the words, finds them: a text may well contain "Instruction: ".
        """
        starts = {}
        for field in ORDERS[self.order]:
            starts[field] = begin + len(f"{_TITLES[field]}: ")
            begin = starts[field] + len(f"{getattr(sample, field)}\n")
        return ((field, starts[field]) for field in ("instruction", "text"))

    def _in_template(self, sample: Sample, plain: str) -> str:
        """The plain prompt inside the tokenizer's chat template, unchanged."""
        of = f"prompt.style: the chat template of {self._plain.name}"
        message = [{"role": "user", "content": plain}]
        try:
            text: str = self.tokenizer.apply_chat_template(
                message, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it may end in any way
            raise InputError(f"{of} takes no prompt ({shown(first_line(error))}); use prompt.style=plain") from error
        if plain not in text:
            raise InputError(
                f"{of} changes what it is given: of sample {sample.id} it makes {shown(text)}; use prompt.style=plain"
            )
        return text

    def _cut_text(self, sample: Sample, room: int) -> _Prompt:
        """The prompt with the longest beginning of the text that fits into `room` tokens."""
        ((_, offsets),) = self._plain.tokens([sample.text])
        keep = len(offsets)
        (prompt,) = self._prompts([sample])
        while (length := len(prompt.ids)) > room:
            if keep == 0:
                raise NoRoom(
                    f"data.max_length: sample {sample.id} needs {length} tokens for its prompt without any text, "
                    f"and {room} are left beside its answer; raise data.max_length"
                )
            # Tokens at the cut may merge anew, so cut, tokenise again, and cut what is still too long.
            keep = max(0, keep - (length - room))
            text = sample.text[: offsets[keep - 1][1]].rstrip() if keep else ""
            (prompt,) = self._prompts([replace(sample, text=text)])
        return prompt


def _token_span(offsets: list[tuple[int, int]], start: int, stop: int) -> Span:
    """The tokens that overlap characters start to stop."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _TOKENIZED_AT_ONCE)):
        yield chunk
