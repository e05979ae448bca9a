"""What an evaluation reports beside the score of its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anit_ds.config import Config
from anit_ds.data.prompts import render_prompt
from anit_ds.data.rundata import RunData
from anit_ds.evaluation import Evaluator
from anit_ds.modeling import load_model, load_tokenizer


def loaded(config: Config) -> tuple[Evaluator, Any, Any]:
    tokenizer = load_tokenizer(config.model)
    return Evaluator(config, RunData.load(config, None), tokenizer), load_model(config.model, torch.float32), tokenizer


def test_losses_and_calibration_are_those_of_plain_passes(
    make_config: Callable[..., Config], log_probability: Callable[..., float]
):
    evaluator, model, tokenizer = loaded(make_config())
    report = evaluator.evaluate(model, "test").report
    samples = evaluator.data["jsonl"].split("test")
    labels = {name: tokenizer(f" {name}")["input_ids"] + [1] for name in ("positive", "negative")}
    nll, tokens, off = 0.0, 0, {}
    for sample in samples:
        prompt = tokenizer(render_prompt(sample))["input_ids"]
        scores = {name: log_probability(model, prompt, answer) for name, answer in labels.items()}
        nll -= scores[sample.answer]
        tokens += len(labels[sample.answer])
        confidence, chosen = max(
            (1 / sum(2.718281828459045 ** (other - score) for other in scores.values()), name)
            for name, score in scores.items()
        )
        bin = min(14, int(confidence * 15))
        off[bin] = off.get(bin, 0.0) + (chosen == sample.answer) - confidence
    assert report["nll"] == pytest.approx(nll / len(samples), abs=1e-4)
    assert report["nll_per_token"] == pytest.approx(nll / tokens, abs=1e-5)
    assert report["ece"] == pytest.approx(sum(map(abs, off.values())) / len(samples), abs=1e-4)


def test_other_tasks_have_losses_and_no_calibration(
    make_config: Callable[..., Config], log_probability: Callable[..., float], tmp_path: Path
):
    rows = [
        {"text": f"{name} lives in {town}", "items": [["PER", name], ["LOC", town]]}
        for name, town in (("Ada", "Rome"), ("Bo", "Lyon"), ("Cy", "Oslo"))
    ]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "instructions.yaml").write_text(
        "task: ner\nquestion: Who and where?\nformat: 'type: span'\nlabels: {PER: person, LOC: location}\n"
        "concise: [Find the names., Name people and places., Mark the names.]\n"
    )
    evaluator, model, tokenizer = loaded(
        make_config(**{"data.path": str(tmp_path), "data.instructions_file": str(tmp_path / "instructions.yaml")})
    )
    report = evaluator.evaluate(model, "dev").report
    samples = evaluator.data["jsonl"].split("dev")
    pairs = [(tokenizer(render_prompt(s))["input_ids"], tokenizer(f" {s.answer}")["input_ids"] + [1]) for s in samples]
    nll = -sum(log_probability(model, *pair) for pair in pairs)
    assert report["nll"] == pytest.approx(nll / 3, rel=1e-5) and "ece" not in report
    assert report["nll_per_token"] == pytest.approx(nll / sum(len(answer) for _, answer in pairs), rel=1e-5)
