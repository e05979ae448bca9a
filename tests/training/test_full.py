"""`lora: null`, every weight trained: what it leaves, what goes on from it, and that it is a plain loop's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from formulas import formulas
from matrix import rows
from plain_loop import plain_loop
from resumed import assert_a_resume_is_exact
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.training import train

MakeConfig = Callable[..., Config]
SGD = {"train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0}
TREE = {"method.schedule": "prefix_tree", "method.tokens": "instruction", "prompt.order": "instruction_last"}
CLEAN, PACKED = {"method.gradient": "clean"}, {"train.padding_free": True}


def test_from_training_to_a_checkpoint_for_transformers(
    make_config: MakeConfig, anit: Callable[..., str], tmp_path: Path
) -> None:
    config = make_config(lora=None, **{"model.dtype": "bfloat16", "eval.every": 1.0, "train.lr": 1e-2})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    out = Path(config.out)
    assert f"model        {out / 'model'}" in anit("train", tmp_path / "run.yaml")
    assert not (out / "adapter").exists()
    saved = load_file(out / "checkpoints" / "step-000006" / "weights.safetensors")
    assert all(weight.dtype is torch.float32 for weight in saved.values()), "float32 masters"
    base = load_file(Path(config.model.name_or_path) / "model.safetensors")
    moved = [name for name, weight in saved.items() if not weight.equal(base[name].float().bfloat16().float())]
    assert set(moved) == set(saved), "embeddings and norms too"
    assert_a_resume_is_exact(config, last="step-000006")

    score = json.loads((out / "eval" / "test.json").read_text())
    anit("eval", out, "--output", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "test.json").read_text())
    assert {k: score[k] for k in ("micro_f1", "nll")} == {k: again[k] for k in ("micro_f1", "nll")}
    anit("eval", out, "--base", "--output", tmp_path / "again")
    base_score = json.loads((tmp_path / "again" / "base-test.json").read_text())
    assert base_score["nll"] != score["nll"]
    (tmp_path / "in.jsonl").write_text('{"text": "very good"}\n')
    assert '"answer"' in anit("predict", out, "--input", tmp_path / "in.jsonl")
    assert "leave --merge out" in anit("export", out, tmp_path / "merged", "--merge", code=2)
    assert "model written to" in anit("export", out, tmp_path / "exported")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto")
    assert alone.dtype is torch.bfloat16 and alone.lm_head.weight is alone.model.embed_tokens.weight
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")("a")["input_ids"]
    (out / "model" / "model.safetensors").write_bytes(b"1234")
    assert "damaged or edited" in anit("eval", out, code=2)


def test_what_is_for_lora_alone_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="with lora: null, where every weight is trained, use three_pass"):
        make_config(lora=None, **{"method.schedule": "pipelined"})


@pytest.mark.parametrize("changes", rows([CLEAN, PACKED, TREE, CLEAN | PACKED], quick=[TREE, CLEAN | PACKED]), ids=str)
def test_two_epochs_are_a_plain_loops(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    config = make_config(
        lora=None, **{**SGD, "method.ball": "frobenius", "train.micro_batch": 2, "eval.test": False, **changes}
    )
    weights, _ = plain_loop(config, formulas()["anit"])
    train(config)
    saved = load_file(Path(config.out) / "model" / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert max((saved[name] - weights[name]).abs().max().item() for name in weights) <= 1e-5
