"""manifest.json: what a noisy set follows from, what came out, and whether a folder holds that very set.

It also holds what a prompt and an answer are made of, so that a run's folder can be asked without the data's source.
"""

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
from anit_ds.data.noise.recipe import Recipe
from anit_ds.data.recordfile import RecordFile
from anit_ds.errors import InputError
from anit_ds.files import sha256_of
from anit_ds.sealed import Damaged, check_file, read_sealed

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig

MANIFEST = "manifest.json"


def facts_of(corpus: Corpus, maker: SampleMaker) -> dict[str, Any]:
    """Everything the noisy set follows from, as plain data; the corpus, the texts and the instructions as hashes."""
    recipe = maker.recipe
    splits = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    # Left out where it says nothing: sets that were made before there were views stay what they are.
    views = {"views": recipe.noise.views} if recipe.noise.views > 1 else {}
    return {
        "version": __version__,
        "dataset": corpus.dataset,
        "task": recipe.instructions.task,
        "instructions": {"version": recipe.version, "paraphrases": recipe.paraphrases},
        "noise": {"kind": recipe.noise.kind, "omega": recipe.noise.omega, "phi": recipe.noise.phi, **views},
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


def identity_of(facts: dict[str, Any]) -> str:
    """One hash of what a run may not change under way: data, instructions, noise and seed, of facts or a manifest.

    Neither the version that made the set nor the epoch it was made for is part of it.
    """
    kept = {key: facts[key] for key in ("dataset", "task", "instructions", "noise", "measure", "inputs")}
    return fingerprint({**kept, "seed": facts["seeds"]["run"]})


def refuse_other_data(begun: str, facts: dict[str, Any], corpus: Corpus, recipe: Recipe, folder: Path) -> None:
    """Raises InputError, naming the file at fault, where the facts are not those a run has `begun` with."""
    try:
        manifest = read_sealed(folder / MANIFEST)
    except Damaged:
        manifest = {}
    same_hashes = identity_of(facts) == begun
    if same_hashes and _in_order(recipe, manifest.get("prompt", recipe.instructions.model_dump())):
        return
    before, inputs = manifest.get("sources", {}), manifest.get("inputs", {})
    changed = [of["path"] for split, of in corpus.sources.items() if of != before.get(split)]
    if not changed and (same_hashes or inputs.get("instructions") != facts["inputs"]["instructions"]):
        changed = [recipe.instructions_from]
    raise InputError(
        f"{changed[0] if changed else corpus.dataset}: is not what the run in this folder began with; "
        "put back what it was, or begin anew with --fresh"
    )


def manifest_of(
    corpus: Corpus,
    maker: SampleMaker,
    facts: dict[str, Any],
    tally: DistanceTally,
    measuring: Measurement,
    outputs: dict[str, Any],
) -> dict[str, Any]:
    """The manifest of a set that has been made; `outputs` maps each file's name to its SHA-256 and number of lines."""
    noisy = tally.counts.total()
    return {
        **facts,
        "fingerprint": fingerprint(facts),
        "prompt": maker.recipe.instructions.model_dump(mode="json"),
        "opposites": list(maker.sources.opposites) if maker.recipe.noise.kind == "opposite" else [],
        "counts": {
            "train": len(corpus.train),
            "dev": len(corpus.dev),
            "test": len(corpus.test),
            "noisy": noisy,
            "raw": len(corpus.train) * maker.recipe.noise.views - noisy,
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


def existing_manifest(
    folder: Path, facts: dict[str, Any], recipe: Recipe, *, begun: bool = False
) -> dict[str, Any] | None:
    """The manifest in `folder` when it says that these facts made it and every file it lists is there unchanged.

    The order of the labels counts: they stand in it in every prompt, and no hash of the facts sees it. A run that has
    begun keeps a set that another version made.
    """
    try:
        manifest = read_sealed(folder / MANIFEST)
        asked = {**facts, "version": manifest["version"]} if begun else facts
        if manifest["fingerprint"] != fingerprint(asked) or not _in_order(recipe, manifest["prompt"]):
            return None
        for name, output in manifest["outputs"].items():
            check_file(folder / name, output["sha256"])
    except (Damaged, KeyError, TypeError, AttributeError):
        return None
    return manifest


def _in_order(recipe: Recipe, prompt: dict[str, Any]) -> bool:
    """Whether a manifest's labels stand in the order of the recipe's."""
    return list(prompt["labels"]) == list(recipe.instructions.labels)
