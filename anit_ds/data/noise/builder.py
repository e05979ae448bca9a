"""A noisy data set and its beta: what `anit data` writes and training reads (docs/method.md sections 1 to 3).

    noisy = build_noisy_set(corpus, recipe, out="runs/x/data")
    noisy.train[0].instruction, noisy.beta, noisy.manifest

In a folder it writes train.jsonl, dev.jsonl, test.jsonl (one `Sample` per line) and, last, manifest.json; asked again
for the same it reads what is there. Without a folder everything stays in memory. `read_noisy_set` needs the folder
alone, and writes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import DistanceTally
from anit_ds.data.examples import Sample
from anit_ds.data.noise.making import SampleMaker, training_samples
from anit_ds.data.noise.manifest import (
    MANIFEST,
    existing_manifest,
    facts_of,
    fingerprint,
    manifest_of,
    refuse_other_data,
)
from anit_ds.data.noise.measuring import measurement
from anit_ds.data.noise.parts import make_parts
from anit_ds.data.noise.recipe import Recipe
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError
from anit_ds.files import replacing
from anit_ds.sealed import check_file, read_sealed, write_sealed


@dataclass(frozen=True)
class NoisySet:
    """Samples of each split, beta in [0, 1], and the manifest (counts, settings, histograms, seeds, hashes, notes)."""

    train: Sequence[Sample]
    dev: Sequence[Sample]
    test: Sequence[Sample]
    beta: float
    manifest: dict[str, Any]


def build_noisy_set(
    corpus: Corpus,
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    workers: int | None = None,
    begun: str | None = None,
) -> NoisySet:
    """Make the training split noisy, measure the distortion, and keep dev and test raw.

    `workers` processes make a large set in a folder. `begun` is the identity (manifest.py) of the set that a run in
    this folder has begun with. Raises InputError: a label without words, a folder that cannot be written, a noise
    without its source, another set than the one that the run has begun with.
    """
    maker = SampleMaker.of(corpus, recipe)
    facts = facts_of(corpus, maker)
    if out is None:
        return _in_memory(corpus, maker, facts)
    folder = Path(out)
    if begun is not None:
        refuse_other_data(begun, facts, corpus, recipe, folder)
    manifest = existing_manifest(folder, facts, recipe, begun=begun is not None)
    manifest = manifest or _write(corpus, maker, facts, folder, workers)
    train, dev, test = (RecordFile(folder / f"{split}.jsonl", Sample.from_json) for split in ("train", "dev", "test"))
    return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest)


def read_noisy_set(folder: Path) -> NoisySet:
    """The set that was made in a folder; a split's file is checked when its first sample is asked for.

    Raises InputError: no set here, or one that is damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: no data here ({MANIFEST} is missing); anit data or anit train make it")
    manifest = read_sealed(folder / MANIFEST)
    try:
        names = [f"{split}.jsonl" for split in ("train", "dev", "test")]
        train, dev, test = (CheckedSamples(folder / name, manifest["outputs"][name]["sha256"]) for name in names)
        return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST}: damaged, it lacks {error}") from error


class CheckedSamples(Sequence[Sample]):
    """A split's file, opened at its first use if it has the SHA-256 of the manifest. Raises Damaged then if not."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest

    @cached_property
    def _records(self) -> RecordFile[Sample]:
        check_file(self.path, self.digest)
        return RecordFile(self.path, Sample.from_json)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self._records[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._records)


def _in_memory(corpus: Corpus, maker: SampleMaker, facts: dict[str, Any]) -> NoisySet:
    tally = DistanceTally()
    made = list(training_samples(maker, corpus.train, tally))
    measuring = measurement(maker.recipe.distortion, tally)
    train = measuring.measured(made)
    dev, test = ([maker.evaluation_sample(example) for example in split] for split in (corpus.dev, corpus.test))
    manifest = manifest_of(corpus, maker, facts, tally, measuring, outputs={})
    return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest)


def _write(
    corpus: Corpus, maker: SampleMaker, facts: dict[str, Any], folder: Path, workers: int | None
) -> dict[str, Any]:
    """Make the set's files in `folder`, the manifest last.

    What is unfinished lies in a folder named by the fingerprint, where the next call finds it.
    """
    unfinished = folder / f".parts-{fingerprint(facts)[:16]}"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror})") from error
    parts, tally = make_parts(maker, corpus.train, unfinished, workers)
    measuring = measurement(maker.recipe.distortion, tally)
    pieces = {
        "train.jsonl": (piece for part in parts for piece in measuring.measured_part(part)),
        "dev.jsonl": (maker.evaluation_sample(example).to_line() for example in corpus.dev),
        "test.jsonl": (maker.evaluation_sample(example).to_line() for example in corpus.test),
    }
    outputs = {name: _write_pieces(unfinished / name, lines) for name, lines in pieces.items()}
    for name in outputs:
        os.replace(unfinished / name, folder / name)
    manifest = manifest_of(corpus, maker, facts, tally, measuring, outputs)
    write_sealed(folder / MANIFEST, manifest)
    for leftover in folder.glob(".parts-*"):
        shutil.rmtree(leftover)
    return manifest


def _write_pieces(path: Path, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write the pieces to `path`; returns its SHA-256 and its number of lines."""
    digest, lines = sha256(), 0
    with replacing(path) as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            lines += piece.count(b"\n")
    return {"sha256": digest.hexdigest(), "lines": lines}
