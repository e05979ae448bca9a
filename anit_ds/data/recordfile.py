"""A JSON-lines file that behaves like a list but stays on disk, at eight bytes of memory per line."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

Record = TypeVar("Record")


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
