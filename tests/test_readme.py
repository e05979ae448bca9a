"""What README prints runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from anit_ds.configfile import load_config
from anit_ds.tiny import tiny_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [b for b in blocks if containing in b]
    return found


def test_nrm_in_a_plain_loop():
    model = tiny_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    ids = torch.randint(2, 250, (3, 10))
    labels = torch.where(torch.arange(10) < 7, -100, ids)
    scope = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(ids, torch.ones_like(ids), labels)] * 3,
    }
    exec(block("python", "PerturbableLM(model)"), scope)
    total, weight = scope["stats"]["loss/adversarial"]
    assert torch.isfinite(total / weight)
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_the_short_configuration_is_valid(tmp_path: Path):
    file = tmp_path / "short.yaml"
    file.write_text(block("yaml", "out: runs/14lap-anit"))
    assert load_config(file).method.name == "anit"
