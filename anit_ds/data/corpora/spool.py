"""Examples of a large split go to a temporary file, so that a corpus of any size fits in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

from anit_ds.data.examples import Example
from anit_ds.data.recordfile import RecordFile

IN_MEMORY = 100_000
"""Examples of a split that stay in memory, about 60 MB; a larger split is kept in a file."""


def collected(examples: Iterable[Example]) -> Sequence[Example]:
    """The examples as a list, or as a `RecordFile` where there are more than IN_MEMORY.

    The file lies in the folder for temporary files (TMPDIR) and goes when the sequence does.
    """
    stream = iter(examples)
    first = list(islice(stream, IN_MEMORY + 1))
    if len(first) <= IN_MEMORY:
        return first
    handle, name = tempfile.mkstemp(prefix="anit-examples-", suffix=".jsonl")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(example.to_json() + "\n" for example in chain(first, stream))
    del first
    kept = RecordFile(Path(name), Example.from_json)
    weakref.finalize(kept, Path(name).unlink, missing_ok=True)
    return kept
