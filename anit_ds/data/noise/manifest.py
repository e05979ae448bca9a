"""manifest.json: what a noisy set follows from, what came out, and whether a folder holds that very set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anit_ds import __version__
from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import DistanceTally
from anit_ds.data.examples import Example
from anit_ds.data.noise.making import SampleMaker
from anit_ds.data.noise.measuring import Measurement
from anit_ds.data.recordfile import RecordFile
from anit_ds.files import read_json, sha256_of

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig

MANIFEST = "manifest.json"


def facts_of(corpus: Corpus, maker: SampleMaker) -> dict[str, Any]:
    """Everything the noisy set follows from, as plain data; the corpus, the texts and the instructions as hashes."""
    recipe = maker.recipe
    splits = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    return {
        "version": __version__,
        "dataset": corpus.dataset,
        "task": recipe.instructions.task,
        "instructions": {"version": recipe.version, "paraphrases": recipe.paraphrases},
        "noise": {"kind": recipe.noise.kind, "omega": recipe.noise.omega, "phi": recipe.noise.phi},
        "measure": _measure_facts(recipe.distortion),
        "seeds": {"run": recipe.seed, "epoch": recipe.epoch},
        "inputs": {
            "instructions": fingerprint(recipe.instructions.model_dump(mode="json")),
            "opposites": fingerprint({"texts": list(maker.sources.opposites)}),
            **{split: _content_hash(examples) for split, examples in splits.items()},
        },
    }


def _measure_facts(distortion: DistortionConfig) -> dict[str, Any]:
    if distortion.kind == "rbe":
        return {"kind": "rbe", "normalise": distortion.normalise}
    return {"kind": "lme", "model": distortion.model, "local": distortion.local, "base_url": distortion.base_url}


def _content_hash(examples: Sequence[Example]) -> str:
    """SHA-256 over ids, texts and items; of the file itself where the examples are kept in one."""
    if isinstance(examples, RecordFile):
        return sha256_of(examples.path)
    digest = sha256()
    for example in examples:
        digest.update(repr((example.id, example.text, example.items)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint(facts: dict[str, Any]) -> str:
    """One hash of everything a noisy set follows from."""
    return sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def manifest_of(
    corpus: Corpus, facts: dict[str, Any], tally: DistanceTally, measuring: Measurement, outputs: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a set that has been made; `outputs` maps each file's name to its SHA-256 and number of lines."""
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
            "left_out": corpus.left_out,
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


def existing_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in `folder` when it says that these facts made it and every file it lists is there unchanged."""
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        intact = manifest["fingerprint"] == fingerprint(facts) and all(
            sha256_of(folder / name) == output["sha256"] for name, output in manifest["outputs"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if intact else None
