"""A data set with noisy instructions and its beta: what `anit data` writes and training reads (method.md section 1-3).

    noisy = build_noisy_set(corpus, instructions, data=..., noise=..., distortion=..., seed=42, out="runs/x/data")
    noisy.train[0].instruction, noisy.beta, noisy.manifest

In a folder it writes train.jsonl, dev.jsonl, test.jsonl (one `Sample` a line) and, last, manifest.json; asked again
for the same it reads what is there. Without a folder everything stays in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anit_ds import __version__
from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import DistanceTally, measure
from anit_ds.data.distortion.lm_based import Estimate, LmDistortion
from anit_ds.data.examples import Sample
from anit_ds.data.instructions import Instructions
from anit_ds.data.noise.files import MANIFEST, content_hash, existing_manifest, fingerprint, write_json, write_pieces
from anit_ds.data.noise.functions import Sources
from anit_ds.data.noise.making import SampleMaker, bend, draw, running_text, training_samples
from anit_ds.data.noise.measuring import Measurement, measurement
from anit_ds.data.noise.opposites import opposites_for
from anit_ds.data.noise.shards import make_parts
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError

if TYPE_CHECKING:
    from anit_ds.config import DataConfig, DistortionConfig, NoiseConfig


@dataclass(frozen=True)
class NoisySet:
    """Samples of each split, beta in [0, 1], and the manifest (counts, settings, histograms, seeds, hashes, notes)."""

    train: Sequence[Sample]
    dev: Sequence[Sample]
    test: Sequence[Sample]
    beta: float
    manifest: dict[str, Any]
    folder: Path | None = None


def build_noisy_set(
    corpus: Corpus,
    instructions: Instructions,
    *,
    data: DataConfig,
    noise: NoiseConfig,
    distortion: DistortionConfig,
    seed: int,
    epoch: int = 0,
    out: Path | str | None = None,
    workers: int | None = None,
) -> NoisySet:
    """Make the training split noisy, measure the distortion, and keep dev and test raw.

    `epoch` draws other noise from the same seed (`noise.resample: epoch`). `workers` processes make a large set.
    Raises InputError: a label without words, a folder that cannot be written, a noise without its source.
    """
    maker = _maker(corpus, instructions, data, noise, seed, epoch)
    facts = _facts(corpus, maker, distortion)
    if out is None:
        return _in_memory(corpus, maker, distortion, facts)
    folder = Path(out)
    manifest = existing_manifest(folder, fingerprint(facts))
    if manifest is None:
        manifest = _write(corpus, maker, distortion, facts, folder, workers)
    train, dev, test = (RecordFile(folder / f"{split}.jsonl", Sample.from_json) for split in ("train", "dev", "test"))
    return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest, folder)


def estimate_embedding(
    corpus: Corpus,
    instructions: Instructions,
    *,
    data: DataConfig,
    noise: NoiseConfig,
    distortion: DistortionConfig,
    seed: int,
    epoch: int = 0,
) -> Estimate:
    """What the LM-based distortion of this set would cost in calls and tokens; no call is made."""
    maker = _maker(corpus, instructions, data, noise, seed, epoch)
    samples = (sample for sample, distance in map(maker.train, corpus.train) if distance is not None)
    return LmDistortion(distortion).estimate(text for s in samples for text in (s.instruction, s.raw_instruction))


def noisy_split(
    samples: Iterable[Sample], kind: str, omega: float, seed: int, *, opposites: Sequence[str] = ()
) -> list[Sample]:
    """Dev or test samples with noisy instructions, every one of them, for the score under a noise.

    `opposites` is needed for the noise `opposite` only. A sample's `distortion` is its distance by length.
    Raises InputError when the noise lacks what it draws from.
    """
    samples = list(samples)
    sources = Sources(running_text=running_text(samples), opposites=opposites)
    return [_bent(sample, kind, omega, seed, sources) for sample in samples]


def _bent(sample: Sample, kind: str, omega: float, seed: int, sources: Sources) -> Sample:
    noise_seed = draw(seed, sample.id).noise_seed
    noisy = bend(kind, sample.raw_instruction, omega, noise_seed, sources, sample.text)
    distance = measure(noisy, sample.raw_instruction)
    return replace(sample, instruction=noisy, noise=kind, distance=distance.words, distortion=distance.by_length)


def _maker(
    corpus: Corpus, instructions: Instructions, data: DataConfig, noise: NoiseConfig, seed: int, epoch: int
) -> SampleMaker:
    _check_labels(corpus, instructions)
    return SampleMaker(
        dataset=corpus.dataset,
        instructions=instructions,
        version=data.instructions,
        paraphrases=data.paraphrases,
        kind=noise.kind,
        omega=noise.omega,
        phi=noise.phi,
        seed=seed,
        epoch=epoch,
        sources=Sources(
            running_text=running_text(corpus.train),
            opposites=opposites_for(instructions, data.instructions, noise),
        ),
    )


def _check_labels(corpus: Corpus, instructions: Instructions) -> None:
    unknown = [label for label in corpus.labels if label not in instructions.labels]
    if unknown:
        raise InputError(
            f"{corpus.dataset}: the data has {', '.join(map(repr, unknown[:5]))}, which the instructions' `labels` "
            f"do not name; they name {', '.join(map(repr, list(instructions.labels)[:10]))}"
        )
    if corpus.task not in (None, instructions.task):
        raise InputError(f"{corpus.dataset} is for {corpus.task}, but its instructions are for {instructions.task}")


def _facts(corpus: Corpus, maker: SampleMaker, distortion: DistortionConfig) -> dict[str, Any]:
    """Everything the noisy set follows from, as plain data."""
    splits = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    return {
        "version": __version__,
        "dataset": corpus.dataset,
        "task": maker.instructions.task,
        "instructions": {"version": maker.version, "paraphrases": maker.paraphrases},
        "noise": {"kind": maker.kind, "omega": maker.omega, "phi": maker.phi},
        "measure": _measure_facts(distortion),
        "seeds": {"run": maker.seed, "epoch": maker.epoch},
        "inputs": {
            "instructions": fingerprint(maker.instructions.model_dump(mode="json")),
            "opposites": fingerprint({"texts": list(maker.sources.opposites)}),
            **{split: content_hash(examples) for split, examples in splits.items()},
        },
    }


def _measure_facts(distortion: DistortionConfig) -> dict[str, Any]:
    if distortion.kind == "rbe":
        return {"kind": "rbe", "normalise": distortion.normalise}
    return {"kind": "lme", "model": distortion.model, "local": distortion.local, "base_url": distortion.base_url}


def _in_memory(corpus: Corpus, maker: SampleMaker, distortion: DistortionConfig, facts: dict[str, Any]) -> NoisySet:
    tally = DistanceTally()
    made = list(training_samples(maker, corpus.train, tally))
    measuring = measurement(distortion, tally)
    train = measuring.measured(made)
    dev, test = ([maker.evaluation(example) for example in split] for split in (corpus.dev, corpus.test))
    manifest = _manifest(corpus, facts, tally, measuring, outputs={})
    return NoisySet(train, dev, test, manifest["distortion"]["beta"], manifest)


def _write(
    corpus: Corpus,
    maker: SampleMaker,
    distortion: DistortionConfig,
    facts: dict[str, Any],
    folder: Path,
    workers: int | None,
) -> dict[str, Any]:
    """Make the set's files in `folder`, the manifest last. Unfinished parts are found again by the fingerprint."""
    parts_folder = folder / f".parts-{fingerprint(facts)[:16]}"
    try:
        parts_folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror})") from error
    parts, tally = make_parts(maker, corpus.train, parts_folder, workers)
    measuring = measurement(distortion, tally)
    pieces = {
        "train": (piece for part in parts for piece in measuring.lines(part)),
        "dev": (maker.evaluation(example).to_line() for example in corpus.dev),
        "test": (maker.evaluation(example).to_line() for example in corpus.test),
    }
    outputs = {f"{split}.jsonl": write_pieces(folder / f"{split}.jsonl", lines) for split, lines in pieces.items()}
    manifest = _manifest(corpus, facts, tally, measuring, outputs)
    write_json(folder / MANIFEST, manifest)
    for leftover in folder.glob(".parts-*"):
        shutil.rmtree(leftover)
    return manifest


def _manifest(
    corpus: Corpus, facts: dict[str, Any], tally: DistanceTally, measuring: Measurement, outputs: dict[str, Any]
) -> dict[str, Any]:
    noisy = tally.counts.total()
    return {
        **facts,
        "fingerprint": fingerprint(facts),
        "counts": {
            "train": len(corpus.train),
            "dev": len(corpus.dev),
            "test": len(corpus.test),
            "noisy": noisy,
            "raw": len(corpus.train) - noisy,
            "skipped": corpus.skipped,
        },
        "distortion": {
            **facts["measure"],
            **measuring.summary(),
            "d": {str(words): count for words, count in tally.words.items()},
        },
        "sources": corpus.sources,
        "outputs": outputs,
        "notes": corpus.notes,
    }
