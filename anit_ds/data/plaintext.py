"""From text to token ids, where a text is only ever text: `</s>` in a review is four characters and ends nothing.

Control tokens are the tokenizer's special ones and those that its chat template writes (`<think>` is not special in
every vocabulary). Other added tokens, a domain's words say, are recognised as ever.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from anit_ds.errors import InputError, shown


class Tokens(NamedTuple):
    """A text's token ids, and the characters [start, stop) that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class PlainText:
    """Tokenises texts with none of their characters read as control. Needs a fast tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        template = getattr(tokenizer, "chat_template", None)
        added = tokenizer.added_tokens_decoder
        control = {
            id: token.content
            for id, token in added.items()
            if token.special or (token.content in str(template or "") and not token.content.isspace())
        }
        self.name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        self._with_control = tokenizer
        self._tokenizer = _treating_as_special(tokenizer, {id for id in control if not added[id].special})
        self._control_ids = frozenset(control)
        longest_first = sorted((re.escape(content) for content in control.values() if content), key=len, reverse=True)
        self._control_text = re.compile("|".join(longest_first) or r"(?!)")

    def tokens(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Tokens]:
        """Each text's tokens; with `add_special_tokens` the tokenizer adds what it begins and ends a sequence with.

        Raises InputError for half a character, and for a text whose control the tokenizer insists on.
        """
        made = self._call(self._tokenizer, texts, add_special_tokens=add_special_tokens, split_special_tokens=True)
        for text, tokens in zip(texts, made, strict=True):
            if found := self._control_text.search(text):
                self._refuse_control(found[0], tokens)
        return made

    def tokens_inside(self, texts: Sequence[str], places: Sequence[tuple[int, int]]) -> list[Tokens]:
        """The tokens of texts in which characters [start, stop) are plain, and control is control around them."""
        made = self._call(self._with_control, texts, add_special_tokens=False)
        for number, (text, (start, stop)) in enumerate(zip(texts, places, strict=True)):
            if self._control_text.search(text, start, stop):
                made[number] = self._pieced_together(text, start, stop)
        return made

    def _pieced_together(self, text: str, start: int, stop: int) -> Tokens:
        """A control token cuts a text in two for every tokenizer, so what lies between two may be tokenised alone."""
        before, after = self._call(self._with_control, [text[:start], text[stop:]], add_special_tokens=False)
        own_ends = [end for id, (_, end) in zip(*before, strict=True) if id in self._control_ids]
        own_starts = [begin for id, (begin, _) in zip(*after, strict=True) if id in self._control_ids]
        first = own_ends[-1] if own_ends else 0
        last = stop + own_starts[0] if own_starts else len(text)
        head, tail = self._call(self._with_control, [text[:first], text[last:]], add_special_tokens=False)
        (middle,) = self.tokens([text[first:last]])
        parts = ((head, 0), (middle, first), (tail, last))
        return Tokens(
            [id for part, _ in parts for id in part.ids],
            [(begin + shift, end + shift) for part, shift in parts for begin, end in part.offsets],
        )

    def _refuse_control(self, found: str, tokens: Tokens) -> None:
        for id, (start, stop) in zip(*tokens, strict=True):
            if id in self._control_ids and stop > start:  # what the tokenizer itself adds stands for no character
                raise InputError(
                    f"model.name_or_path: the tokenizer of {self.name} reads {found!r} in a text as control, whatever "
                    "it is told; take it out of the data"
                )

    def _call(self, tokenizer: Any, texts: Sequence[str], **options: bool) -> list[Tokens]:
        try:
            batch = tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False, **options)
        except (TypeError, UnicodeError) as error:
            half = next((text for text in texts if re.search("[\ud800-\udfff]", text)), None)
            if half is None:
                raise
            raise InputError(f"half a character (a lone surrogate) is no text: {shown(half)}") from error
        return [Tokens(*of) for of in zip(batch["input_ids"], batch["offset_mapping"], strict=True)]


def _treating_as_special(tokenizer: Any, ids: set[int]) -> Any:
    """The tokenizer, or a copy to which these added tokens are special, so that it can leave them unrecognised."""
    if not ids:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in ids
    twin = copy.deepcopy(tokenizer)
    twin._tokenizer = type(backend).from_str(json.dumps(content))
    return twin
