"""`noise.views`: several noisy instructions of a sample in one step, all of them or the worst, against a plain loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from formulas import formulas
from plain_loop import plain_loop
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.training import train

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize("train_on", ["all", "worst"])
def test_views_on_a_tree_are_a_plain_loops(make_config: MakeConfig, train_on: str):
    shape = {
        "prompt.order": "instruction_last", "noise.views": 4, "noise.train_on": train_on,
        "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "train.max_steps": 3, "eval.test": False,
        "train.micro_batch": 4,
    }  # fmt: skip
    method = {"name": "anit", "preset": "paper", "alpha": 0.3, "tokens": "instruction"}
    tree = make_config("tree", **shape, method={**method, "schedule": "prefix_tree"})
    train(tree)
    weights, losses = plain_loop(make_config("plain", **shape, method=method), formulas()["anit"])
    saved = load_file(Path(tree.out) / "adapter" / "adapter_model.safetensors")
    assert max((saved[name] - weights[name]).abs().max().item() for name in weights) <= 1e-5
    lines = [json.loads(line) for line in (Path(tree.out) / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/clean"] for line in lines if "lr" in line] == pytest.approx(losses, abs=1e-5)


def test_the_first_view_is_the_sample_itself_and_each_is_drawn_apart(make_config: MakeConfig):
    one, three = (RunData.load(make_config(**{"noise.views": views}), None) for views in (1, 3))
    alone, groups = one.train_samples(seed=1, epoch=0), three.train_samples(seed=1, epoch=0)
    assert [group[:1] for group in groups] == alone
    assert {len(group) for group in groups} == {3}
    assert all(len({(s.text, s.answer) for s in group}) == 1 and len({s.id for s in group}) == 3 for group in groups)
    assert any(len({s.instruction for s in group}) == 3 for group in groups)
    counts = three.sets[0].noisy.manifest["counts"]
    assert counts["noisy"] + counts["raw"] == 3 * counts["train"]


def test_views_without_a_noise_are_refused(make_config: MakeConfig):
    with pytest.raises(InputError, match="noise.views: 3 views of a sample need a noise"):
        make_config(**{"noise.kind": "none", "noise.views": 3})
    assert make_config(method={"name": "sft"}, **{"noise.views": 3}).noise.views == 1  # raw instructions by definition
