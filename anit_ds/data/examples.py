"""What data is made of here: an `Example` read from a corpus, and the `Sample` a model is trained or tested on.

Either is named by its `id`, a text; `sample_key` says how the number that stands for it relates to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import orjson

Item = tuple[str, ...]
"""One answer item: ("positive",), (type, span), (relation, head, tail) or (sentiment, aspect, opinion)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text and its gold answer, as the corpus has it.

    `id` is stable and unique ("14lap/train/17"); `items` is the gold multiset in order of appearance, with the
    corpus's raw labels ("/people/person/place_lived", "POS").
    """

    id: str
    text: str
    items: tuple[Item, ...]

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        return _dumps(self).decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> Example:
        fields = _loads(line)
        return cls(fields["id"], fields["text"], _as_items(fields["items"]))


@dataclass(frozen=True, slots=True)
class Sample:
    """An `Example` with its prompt's parts and the noise in its instruction: one line of data/train.jsonl.

    `instruction` is what the model is shown, `raw_instruction` what it was before the noise. `distance` is their
    word-level Levenshtein distance and `distortion` this sample's own d'_i in [0, 1] (docs/method.md section 3); a raw
    sample has noise "none" and 0 for both. `answer` is the rendered gold answer.
    """

    id: str
    dataset: str
    text: str
    items: tuple[Item, ...]
    instruction: str
    raw_instruction: str
    question: str
    format: str
    options: str
    answer: str
    noise: str
    distance: int
    distortion: float

    def to_line(self) -> bytes:
        """The line as a file holds it: UTF-8, with its newline."""
        return _dumps(self) + b"\n"

    @classmethod
    def from_json(cls, line: str | bytes) -> Sample:
        fields = _loads(line)
        fields["items"] = _as_items(fields["items"])
        return cls(**fields)


def _dumps(record: Example | Sample) -> bytes:
    try:
        return orjson.dumps(record)
    except orjson.JSONEncodeError:  # a lone surrogate: JSON can escape it, UTF-8 cannot hold it
        return json.dumps(asdict(record), separators=(",", ":")).encode("ascii")


def _loads(line: str | bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        fields = json.loads(line)
    return fields


def _as_items(lists: Iterable[Iterable[str]]) -> tuple[Item, ...]:
    return tuple(tuple(item) for item in lists)


def view_id(id: str, number: int) -> str:
    """The id of a sample's view: its own for the first, 0, and another, which `text_id` leads back, for each further
    one."""
    return f"{id}#view-{number}" if number else id


def text_id(id: str) -> str:
    """The id that all views of a sample come from."""
    return id.partition("#view-")[0]


def sample_key(id: str) -> int:
    """A sample's key, a number in [0, 2^64): blake2b of its id's UTF-8 bytes, little-endian.

    The `id` is the text that names a sample in every file; the `key` stands for it where arithmetic needs a number.
    Read as an int64, the key is what `Batch` and the kernels call `sample_ids`, a part of the Philox counter
    (docs/method.md section 4).
    """
    return int.from_bytes(hash_of_id(id, 8), "little")


def hash_of_id(id: str, size: int, *, seed: bytes = b"", purpose: bytes = b"") -> bytes:
    """`size` bytes of blake2b of an id: every random choice about a sample follows from them, never from its place."""
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=size, key=seed, person=purpose).digest()
