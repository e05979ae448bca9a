"""A noisy data set and its beta: what `anit data` writes and training reads (docs/method.md sections 1 to 3).

    noisy = build_noisy_set(corpus, recipe, out="runs/x/data")
    noisy.train[0].instruction, noisy.beta, noisy.manifest

In a folder it writes train.jsonl, dev.jsonl, test.jsonl (one `Sample` per line) and, last, manifest.json; asked again
for the same it reads what is there. Without a folder everything stays in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import DistanceTally
from anit_ds.data.examples import Sample
from anit_ds.data.noise.making import SampleMaker, training_samples
from anit_ds.data.noise.manifest import MANIFEST, existing_manifest, facts_of, fingerprint, manifest_of
from anit_ds.data.noise.measuring import measurement
from anit_ds.data.noise.parts import make_parts
from anit_ds.data.noise.recipe import Recipe
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError
from anit_ds.files import replacing, write_json


@dataclass(frozen=True)
class NoisySet:
    """Samples of each split, beta in [0, 1], and the manifest (counts, settings, histograms, seeds, hashes, notes)."""

    train: Sequence[Sample]
    dev: Sequence[Sample]
    test: Sequence[Sample]
    beta: float
    manifest: dict[str, Any]


def build_noisy_set(
    corpus: Corpus, recipe: Recipe, *, out: Path | str | None = None, workers: int | None = None
) -> NoisySet:
    """Make the training split noisy, measure the distortion, and keep dev and test raw.

    `workers` processes make a large set in a folder. Raises InputError: a label without words, a folder that cannot be
    written, a noise without its source.
    """
    maker = SampleMaker.of(corpus, recipe)
    facts = facts_of(corpus, maker)
    if out is None:
        return _in_memory(corpus, maker, facts)
    folder = Path(out)
    manifest = existing_manifest(folder, facts) or _write(corpus, maker, facts, folder, workers)
    train, dev, test = (RecordFile(folder / f"{split}.jsonl", Sample.from_json) for split in ("train", "dev", "test"))
    return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest)


def _in_memory(corpus: Corpus, maker: SampleMaker, facts: dict[str, Any]) -> NoisySet:
    tally = DistanceTally()
    made = list(training_samples(maker, corpus.train, tally))
    measuring = measurement(maker.recipe.distortion, tally)
    train = measuring.measured(made)
    dev, test = ([maker.evaluation_sample(example) for example in split] for split in (corpus.dev, corpus.test))
    manifest = manifest_of(corpus, facts, tally, measuring, outputs={})
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
    manifest = manifest_of(corpus, facts, tally, measuring, outputs)
    write_json(folder / MANIFEST, manifest)
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
