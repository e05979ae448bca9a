"""What data is made of here: an `Example` read from a corpus, and the `Sample` a model is trained or tested on.

A `RecordFile` is a JSON-lines file of either that behaves like a list but stays on disk, so that a set of a
million samples costs eight bytes of memory a line.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import orjson

Item = tuple[str, ...]
"""One answer item: ("positive",), (type, span), (relation, head, tail) or (sentiment, aspect, opinion)."""

Record = TypeVar("Record")


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
    word-level Levenshtein distance and `distortion` this sample's own d'_i in [0, 1] (method.md section 3); a raw
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

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        return _dumps(self).decode()

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


def sample_key(id: str) -> int:
    """A sample's number in [0, 2^64): blake2b of the id's UTF-8 bytes, little-endian.

    It is the sample id in the Philox counter (method.md section 4) and an ingredient of its noise seed, so neither
    depends on the order of the data.
    """
    return int.from_bytes(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class RecordFile(Sequence[Record], Generic[Record]):
    """The lines of a JSON-lines file as a read-only sequence that parses a record when it is asked for.

    Memory holds where each line begins and nothing else. Can be pickled (it reopens the file), so that processes may
    share one.
    """

    def __init__(self, path: Path | str, parse: Callable[[bytes], Record]) -> None:
        self.path = Path(path)
        self._parse = parse
        self._file = self.path.open("rb")
        self._starts = array("Q", [0])
        for line in self._file:
            self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return [self._parse(line) for line in self._read(start, max(start, stop)).splitlines(keepends=True)]
            return [self[i] for i in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} records, there is no number {index}")
        index %= len(self)
        return self._parse(self._read(index, index + 1))

    def __iter__(self) -> Iterator[Record]:
        return (record for start in range(0, len(self), 1024) for record in self[start : start + 1024])

    def _read(self, start: int, stop: int) -> bytes:
        """The bytes of lines start to stop. `pread` has no position that processes or threads could disturb."""
        begin = self._starts[start]
        return os.pread(self._file.fileno(), self._starts[stop] - begin, begin)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, os.fstat(self._file.fileno()).st_mtime_ns, self._parse)


@lru_cache(maxsize=4)
def _reopened(path: Path, modified: int, parse: Callable[[bytes], Record]) -> RecordFile[Record]:
    """A process that is sent one file many times, part by part, looks for its lines once."""
    return RecordFile(path, parse)
