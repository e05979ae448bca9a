"""How long cells will take: from the finished ones like them, or, before there is any, from their arithmetic.

The arithmetic is rough and says so: forward and backward of a frozen model with LoRA are about 4 operations a weight
and token, and a device sustains about what is written below (SmolLM2-135M in bfloat16 on one CPU thread, measured; a
third of an A100's data sheet, not measured).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config
from anit_ds.data.corpora import Cut, load_corpus
from anit_ds.data.corpora.streams import is_hub_path
from anit_ds.data.mixture import Portion, portions
from anit_ds.errors import InputError
from anit_ds.experiments.cells import Cell

_OPERATIONS = 4  # per weight and token
_CPU_THREAD = 1e11
_GPU = 1e14
_TOKENS_PER_WORD = 1.4
_PROMPT_WORDS = 60  # instruction, question, format and options, beside the text


@dataclass(frozen=True)
class Device:
    """What a cell computes on."""

    gpu: bool
    threads: int
    """CPU threads."""


def device_here() -> Device:
    """This machine's, without importing torch."""
    gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    return Device(gpu, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


def seconds(cell: Cell, finished: Sequence[Mapping[str, Any]], device: Device) -> float | None:
    """Wall-clock seconds of a cell, or None where nothing is known of its data or its model.

    `finished` are results of the comparison's other cells.
    """
    train, rows = cell.config.train, cell.config.noise.rows
    passes = passes_of(cell.config) * _steps_of_minibatch(cell.config.method.updates) * rows
    alike = [r["seconds"] / _work(r) for r in finished if _alike(r, cell.axes())]
    if alike and train.max_steps is None:
        return median(alike) * passes * train.epochs
    weights, words = _weights(cell.config.model.name_or_path), _training_words(cell.config)
    if weights is None or words is None:
        return None
    tokens = words * _TOKENS_PER_WORD * train.epochs
    if train.max_steps is not None:
        samples = _training_samples(cell.config) or 1
        tokens = min(tokens, words * _TOKENS_PER_WORD * train.max_steps * train.global_batch / samples)
    rate = _GPU if device.gpu else _CPU_THREAD * device.threads
    return passes * tokens * weights * _OPERATIONS / rate


def passes_of(config: Config) -> int:
    """Forward-and-backward passes of a step (docs/method.md section 5), without building the method."""
    return METHODS[config.method.name].passes(config.method)


def _steps_of_minibatch(updates: str) -> int:
    """Optimizer steps on each minibatch of an epoch, from method.updates."""
    return 2 if updates == "alternating" else 1


def _work(result: Mapping[str, Any]) -> float:
    """Passes over the training samples that a cell has made."""
    config = result["config"]
    rows = config.get("noise.views", 1) if config.get("noise.train_on", "all") == "all" else 1
    steps = _steps_of_minibatch(config.get("method.updates", "joint"))
    return float(result["passes"] * steps * config["train.epochs"] * rows)


def _alike(result: Mapping[str, Any], axes: Mapping[str, Any]) -> bool:
    same = all(result[key] == axes[key] for key in ("dataset", "fraction", "max_train", "model"))
    return same and "seconds" in result and result["config"].get("train.max_steps") is None


def _weights(name_or_path: str) -> float | None:
    """Number of weights: from a local checkpoint's size (two bytes each), or from a name such as Llama-2-7b."""
    files = list(Path(name_or_path).glob("*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files) / 2
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bm])\b", name_or_path.lower())
    return float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]] if named else None


def _training_words(config: Config) -> float | None:
    splits = _splits(config)
    if splits is None:
        return None
    return sum(len(example.text.split()) + _PROMPT_WORDS for split in splits for example in split)


def _training_samples(config: Config) -> int | None:
    splits = _splits(config)
    return None if splits is None else sum(map(len, splits))


def _splits(config: Config) -> list[Sequence[Any]] | None:
    data = config.data
    splits = [_train_split(of, data.fraction, data.max_train) for of in portions(data)]
    found = [split for split in splits if split is not None]
    return found if len(found) == len(splits) else None


@cache
def _train_split(of: Portion, fraction: float, at_most: int | None) -> Sequence[Any] | None:
    if of.path is None or is_hub_path(of.path):
        return None  # asking the hub for a data set is no part of an estimate
    try:
        cut = Cut(fraction=fraction, max_train=at_most)
        return load_corpus(of.dataset, of.path, task=of.instructions().task, own=of.own, on_error="skip", cut=cut).train
    except InputError:
        return None


def clock(took: float) -> str:
    """Seconds as a person says them: 48 s, 12 min, 3.5 h."""
    if took < 120:
        return f"{took:.0f} s"
    return f"{took / 60:.0f} min" if took < 2 * 3600 else f"{took / 3600:.1f} h"
