"""A run's best adapter in PEFT's format, or base and adapter merged into one checkpoint, checked by its logits; the
checkpoint itself of a run that trained every weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from anit_ds.config import Config
from anit_ds.errors import InputError, RunFailed
from anit_ds.files import replacing_folder
from anit_ds.modeling import load_tokenizer, load_trained, resolve_dtype, weights_about
from anit_ds.runfolder import RunFolder

# How far the merged model's logits may be from base + adapter's: root mean square, relative to their spread. Merging
# rounds W + BA once to the weights' dtype where base + adapter rounds two products, so in half precision they differ as
# much as either does from float32: 0.05 on SmolLM2-135M in bfloat16, where an adapter of two steps moves them by 0.23.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


Beside = Callable[[Path], list[str]]
"""Writes what stands beside the weights into their folder, and returns what has to be said about it."""


def export_best(run_path: Path, out: Path, beside: Beside = lambda folder: []) -> list[str]:
    """Write the best adapter of a run to `out`, or its model with the tokenizer; returns what `beside` says. Raises
    InputError: no run, no weights or damaged ones, `out` already there."""
    run, config = run_with_weights(run_path, out)
    with _filling(out) as unfinished:
        shutil.copytree(run.best(config), unfinished, dirs_exist_ok=True)
        if config.lora is None:
            load_tokenizer(config.model).save_pretrained(unfinished)
        return beside(unfinished)


def export_merged(run_path: Path, out: Path, beside: Beside = lambda folder: []) -> tuple[float, list[str]]:
    """Write base and best adapter as one model, with its tokenizer, to `out`.

    Returns how far its logits are from base + adapter's (root mean square, in units of their spread), and what `beside`
    says. Raises InputError: no run, no adapter, `out` already there. Raises RuntimeError where the merged checkpoint,
    loaded by transformers alone, does not give the logits of base + adapter.
    """
    run, config = run_with_weights(run_path, out)
    if config.lora is None:
        raise InputError(
            f"{run_path}: trained every weight, so its export is one checkpoint already; leave --merge out"
        )
    # LoRA that was trained beside weights in 4 bits goes into the weights that those were made of.
    quantised = config.model.load_in_4bit
    config = config.model_copy(update={"model": config.model.model_copy(update={"load_in_4bit": False})})
    dtype = resolve_dtype(config.model.dtype, "cuda" if torch.cuda.is_available() else "cpu")
    with _filling(out) as unfinished:
        tokenizer = load_tokenizer(config.model)
        model: Any = load_trained(config, run.adapter, dtype).eval()
        probe = tokenizer("Instruction: answer.\nText: a test of the weights\nAnswer:", return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(input_ids=probe).logits.float()
        model.merge_and_unload().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        notes = beside(unfinished)
        alone = AutoModelForCausalLM.from_pretrained(unfinished, dtype=dtype).eval()
        with torch.no_grad():
            merged = alone(input_ids=probe).logits.float()
        difference = ((merged - expected).square().mean().sqrt() / expected.std()).item()
        if difference > _TOLERANCE[dtype]:
            raise RunFailed(f"the merged logits differ from base + adapter's by {difference:.2g} of their spread")
    if quantised:
        notes = [
            *notes,
            "merged into the weights that those in 4 bits were made of, so answers may differ from the run's",
        ]
    return difference, notes


@contextmanager
def _filling(out: Path) -> Iterator[Path]:
    """`replacing_folder`; raises InputError for a place where none can be."""
    with ExitStack() as opened:
        try:
            unfinished = opened.enter_context(replacing_folder(out))
        except OSError as error:
            raise InputError(f"{out}: cannot write there ({error.strerror})") from error
        yield unfinished


def run_with_weights(path: Path, out: Path) -> tuple[RunFolder, Config]:
    """The run and its configuration, where it has weights to export and `out` is free to be written."""
    run = RunFolder(path)
    config = run.load_config()
    if out.exists():
        raise InputError(f"{out}: already there; choose another folder")
    best = run.best(config)
    if not best.is_dir():
        raise InputError(f"{path}: has no {best.name} yet; train it first")
    weights_about(best)
    return run, config
