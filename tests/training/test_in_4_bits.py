"""QLoRA (`model.load_in_4bit`): the attack's gradient against the same weights in full, and a run from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed import assert_a_resume_is_exact
from torch import Tensor, nn

from anit_ds.adversarial import Batch, PerturbableLM
from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.modeling import load_model
from anit_ds.training import train

functional = pytest.importorskip("bitsandbytes.functional")
MakeConfig = Callable[..., Config]


def in_full(packed: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain`, a model in float32, with each weight's value in `packed`, which has some of them in 4 bits."""
    with torch.no_grad():
        for name, p in plain.named_parameters():
            of = packed.get_parameter(name)
            state = getattr(of, "quant_state", None)
            p.copy_(of if state is None else functional.dequantize_4bit(of.data, state))
    return plain


def attack_gradient(model: nn.Module) -> Tensor:
    ids = torch.randint(2, 250, (3, 40), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(40) >= torch.tensor([30, 25, 33])[:, None], ids, -100)
    batch = Batch.from_labels(ids, torch.ones_like(ids, dtype=torch.bool), labels, beta=0.4, step=0)
    _, _, g = PerturbableLM(model).input_gradient(batch)
    return g.float()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("double", [True, False], ids=["double", "once"])
def test_the_attack_is_that_on_the_same_weights_in_full(
    make_config: MakeConfig, dtype: torch.dtype, most: float, double: bool
) -> None:
    config = make_config(**{"model.load_in_4bit": True, "model.bnb_4bit_use_double_quant": double})
    plain = make_config().model
    packed = load_model(config.model, dtype)
    expected = attack_gradient(in_full(packed, load_model(plain, torch.float32)))
    found, before = attack_gradient(packed), attack_gradient(load_model(plain, torch.float32))
    off, from_plain = ((found - other).norm() / other.norm() for other in (expected, before))
    print(f"{dtype}: {off:.1e} from the same weights in float32, {from_plain:.1e} from those that were quantised")
    assert off <= most < from_plain


def test_from_training_to_a_merged_checkpoint(
    make_config: MakeConfig, anit: Callable[..., str], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"model.load_in_4bit": True, "model.dtype": "bfloat16", "train.lr": 1e-2}
    config = make_config(**changes, **{"deepspeed": {"zero_optimization": {"stage": 2}}})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    out = Path(config.out)
    anit("train", tmp_path / "run.yaml")
    assert_a_resume_is_exact(config, last="step-000006")
    score = json.loads((out / "eval" / "test.json").read_text())
    anit("eval", out, "--output", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "test.json").read_text())["nll"] == score["nll"]
    said = anit("export", out, tmp_path / "merged", "--merge")
    assert "merged model written" in said and "that those in 4 bits were made of" in said


def test_pipelined_is_three_passes(make_config: MakeConfig) -> None:
    lines = {}
    for schedule in ("three_pass", "pipelined"):
        config = make_config(
            schedule,
            **{"model.load_in_4bit": True, "method.schedule": schedule, "train.micro_batch": 2, "eval.test": False},
        )
        train(config)
        metrics = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
        lines[schedule] = [line["loss/adversarial"] for line in map(json.loads, metrics) if "lr" in line]
    assert lines["pipelined"] == pytest.approx(lines["three_pass"], rel=1e-5)


def test_what_cannot_be_is_refused(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="weights in 4 bits cannot be trained; use LoRA on them"):
        make_config(lora=None, **{"model.load_in_4bit": True})
    monkeypatch.setattr("anit_ds.modeling.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes; pip install 'anit-ds\[quant\]'"):
        load_model(make_config(**{"model.load_in_4bit": True}).model, torch.float32)
