"""Two ranks that hold half of every weight each (ZeRO-3) answer as one rank that holds all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import rows
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.evaluation.finished import FinishedRun
from anit_ds.tiny import tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from ranks import run as run_ranks  # noqa: E402

# ZeRO-3 leaves parameters this small whole on every rank unless told otherwise.
PARTITIONED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A random model whose answers are of many lengths: one token in seven ends one."""
    model = tiny_model(tie_word_embeddings=False, initializer_range=0.15)
    model.generation_config.eos_token_id = list(range(1, 80))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "whole"), rows([("instruction_last", False), ("paper", None)], quick=[("instruction_last", False)])
)
def test_two_ranks_answer_as_one(
    order: str, whole: bool | None, model_folder: Path, make_config: Callable[..., Config]
):
    # Two shares of four prompts and of two: while one rank still answers, the other only takes part.
    config = make_config(
        model={"name_or_path": str(model_folder), "dtype": "float32"},
        deepspeed=PARTITIONED,
        **{
            "eval.batch_size": 1, "eval.max_new_tokens": 12, "eval.noises": ["opposite", "shuffle"],
            "eval.whole_weights": whole, "prompt.order": order, "train.micro_batch": 4, "train.max_steps": 1,
        },
    )  # fmt: skip
    run_ranks(2, config)
    folder = Path(config.out) / "eval"
    names = ["dev", "test", "test-opposite", "test-shuffle"]
    ours = {name: both(folder, name) for name in names}
    alone = FinishedRun(config.out)
    for split, noises in (("dev", ["none"]), ("test", ["none", "opposite", "shuffle"])):
        list(alone.evaluate(split, noises, output=Path(config.out) / "alone"))
    for name in names:
        (report, rows), (expected, expected_rows) = ours[name], both(Path(config.out) / "alone", name)
        assert rows == expected_rows and len(rows) == 6
        for key in ("nll", "nll_per_token", "ece"):
            assert report[key] == pytest.approx(expected[key], abs=1e-4) and expected[key] > 0
    log = (Path(config.out) / "log-rank0.txt").read_text()
    assert ("are gathered once an evaluation" in log) is (whole is None)
    lengths = {len(row["answer"]) for _, rows in ours.values() for row in rows}
    assert len(lengths) > 3, "answers of one length would not show ranks that wait for each other"


@pytest.mark.slow
def test_training_goes_on_as_if_weights_had_never_been_whole(make_config: Callable[..., Config]):
    shape = {"train.epochs": 1, "eval.every": 0.5, "eval.test": False, "train.micro_batch": 2, "deepspeed": PARTITIONED}
    runs = [make_config(f"whole-{whole}", **shape, **{"eval.whole_weights": whole}) for whole in (True, False)]
    run_ranks(2, *runs)
    adapters = [(Path(run.out) / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    steps = [(Path(run.out) / "metrics.jsonl").read_text().count('"dev/micro_f1"') for run in runs]
    one, two = (load_file(Path(run.out) / "checkpoints/step-000003/weights.safetensors") for run in runs)
    assert max(weight.abs().max().item() for name, weight in one.items() if "lora_B" in name) > 1e-4, "it starts at 0"
    assert all(weight.equal(two[name]) for name, weight in one.items())
    assert adapters[0] == adapters[1] and steps == [2, 2]


def both(folder: Path, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    report = json.loads((folder / f"{name}.json").read_text())
    return report, [json.loads(line) for line in (folder / f"predictions-{name}.jsonl").read_text().splitlines()]
