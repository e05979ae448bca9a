"""`method.attack_none: false`: a text in which nothing is to be found counts as often and is not attacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from formulas import formulas
from plain_loop import plain_loop
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.training import train

INSTRUCTIONS = """
task: ner
question: Which names occur?
format: "type: span; type: span"
labels: {person: person, place: place}
concise: [Find the names.]
"""


@pytest.fixture
def some_names(tmp_path: Path) -> Path:
    """Texts of which two in three name nobody."""
    for split, size in (("train", 12), ("dev", 2)):
        rows = [
            {"text": f"{'Ada' if n % 3 == 0 else 'Nobody'} came {'very ' * (n % 4)}late on day {n} .",
             "items": [["person", "Ada"]] if n % 3 == 0 else []}
            for n in range(size)
        ]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "names.yaml").write_text(INSTRUCTIONS)
    return tmp_path


@pytest.mark.parametrize("schedule", ["three_pass", "prefix_tree"])
def test_weights_are_those_of_the_plain_loop(make_config: Callable[..., Config], some_names: Path, schedule: str):
    loud = {"name": "anit", "preset": "ours", "alpha": 0.3, "schedule": schedule}
    shape = {
        "data": {"dataset": "jsonl", "path": str(some_names), "instructions": "concise",
                 "instructions_file": str(some_names / "names.yaml")},
        "noise": {"kind": "none", "omega": 0.0, "phi": 0.0}, "prompt.order": "instruction_last",
        "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "eval.test": False,
    }  # fmt: skip
    config = make_config("run", **shape, method=loud)
    assert not config.method.attack_none
    train(config)
    saved = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")

    def apart(method: dict[str, object]) -> float:
        weights, _ = plain_loop(make_config("plain", **shape, method=method), formulas()["anit"])
        return max((saved[name] - weights[name]).abs().max().item() for name in weights)

    plain = {**loud, "schedule": "three_pass", "eps_unit": "absolute", "alpha": 0.3 * row(config)}
    assert apart(plain) <= 1e-5
    assert apart({**plain, "attack_none": True}) > 1e-4


def row(config: Config) -> float:
    """The mean norm of a row of the embedding table, the unit of the preset's steps."""
    weights = load_file(Path(config.model.name_or_path) / "model.safetensors")
    table = next(tensor for name, tensor in weights.items() if "embed_tokens" in name)
    return float(table.float().norm(dim=-1).mean())
