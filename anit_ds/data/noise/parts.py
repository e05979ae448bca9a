"""The training split of a large noisy set: made in parts, by several processes, going on where it was interrupted.

A part is complete when its .jsonl is there (its tally is written before it), so a second call makes only what is
missing. Memory holds one part per process, whatever the size of the set.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from anit_ds.data.distortion import Distance, DistanceTally
from anit_ds.data.examples import Example
from anit_ds.data.noise.making import SampleMaker, training_samples
from anit_ds.data.recordfile import RecordFile
from anit_ds.files import read_json, replacing, write_atomically

PART_SIZE = 5_000
"""Training samples per part: about 10 MB, a fraction of a second's work."""


@dataclass(frozen=True)
class _Part:
    """One part's task: picklable, and light where the examples are in a file of their own."""

    maker: SampleMaker
    examples: Sequence[Example]
    start: int
    stop: int
    path: Path

    def write(self) -> None:
        """Make the part and write its files."""
        with _no_cycle_search():
            self._write()

    def _write(self) -> None:
        tally = DistanceTally()
        samples = training_samples(self.maker, self.examples[self.start : self.stop], tally)
        with replacing(self.path) as file:
            file.writelines(sample.to_line() for sample in samples)
            counts = [[*distance, count] for distance, count in tally.counts.items()]
            write_atomically(self._tally_file, json.dumps(counts))

    def tally(self) -> DistanceTally:
        tally = DistanceTally()
        for words, longest, raw_length, count in read_json(self._tally_file):
            tally.counts[Distance(words, longest, raw_length)] = count
        return tally

    @property
    def _tally_file(self) -> Path:
        return self.path.with_suffix(".tally.json")


@contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Samples hold no cycles, and looking for some among thousands of new ones takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_parts(
    maker: SampleMaker, examples: Sequence[Example], folder: Path, workers: int | None = None
) -> tuple[list[Path], DistanceTally]:
    """Write the noisy training samples into `folder` as part files; returns them in order, and their tally.

    `workers` processes (by default one per core that this process may use) share the parts; a set of one part, or
    `workers=1`, is made in this process. Each is started afresh, not forked: forking a process that holds threads
    (torch's, a tokenizer's) can hang.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_parts(maker, examples, folder))
    missing = [part for part in parts if not part.path.exists()]
    workers = min(workers or len(os.sched_getaffinity(0)), len(missing))
    with tqdm(total=len(missing), unit="part", desc="noisy set", disable=None if len(missing) > 1 else True) as bar:
        for _ in _write_all(missing, workers):
            bar.update()
    tally = DistanceTally()
    for part in parts:
        tally.merge(part.tally())
    return [part.path for part in parts], tally


def _parts(maker: SampleMaker, examples: Sequence[Example], folder: Path) -> Iterator[_Part]:
    for number, start in enumerate(range(0, len(examples), PART_SIZE)):
        stop = min(start + PART_SIZE, len(examples))
        yield _Part(maker, examples, start, stop, folder / f"part-{number:06}.jsonl")


def _write_all(parts: list[_Part], workers: int) -> Iterator[None]:
    """Write the parts, yielding after each; at most two per worker are under way, so that memory stays bounded."""
    if workers <= 1:
        for part in parts:
            part.write()
            yield
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: deque[Future[None]] = deque()
        for part in parts:
            if len(under_way) == 2 * workers:
                yield under_way.popleft().result()
            under_way.append(pool.submit(_light(part).write))
        while under_way:
            yield under_way.popleft().result()


def _light(part: _Part) -> _Part:
    """The part with no more examples than it needs, as it will be sent to another process."""
    if isinstance(part.examples, RecordFile):
        return part
    own = part.examples[part.start : part.stop]
    return _Part(part.maker, own, 0, len(own), part.path)
