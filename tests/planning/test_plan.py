"""`anit plan`: counts against real steps and real models, and what the command says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from anit_ds.adversarial import PerturbableLM, build_method
from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.modeling import load_model, make_trainable
from anit_ds.planning import footprint as footprints
from anit_ds.planning.footprint import footprint
from anit_ds.planning.forecast import Cluster, Forecaster
from anit_ds.planning.workload import Workload, made_up
from anit_ds.training.schedule import sweeps

TREE = {"method.schedule": "prefix_tree", "method.tokens": "instruction", "prompt.order": "instruction_last",
        "lora.dropout": 0.0}  # fmt: skip


@pytest.fixture
def deep_folder(tmp_path: Path) -> Path:
    """A model of six layers, its config.json alone."""
    settings = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=True,
    )  # fmt: skip
    settings.architectures = ["LlamaForCausalLM"]
    settings.save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


def _batch(config: Config):
    return Workload([made_up(n, 64) for n in range(4)], 64, known=False).micro_batch(config, 4)


@pytest.mark.parametrize("changes", [{}, {"method.gradient": "clean"}, TREE], ids=["anit", "clean", "tree"])
def test_two_depths_give_every_depth(
    changes: dict, deep_folder: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    config = make_config(**{"model.name_or_path": str(deep_folder), "method.name": "anit", **changes})
    followed = footprint(config, _batch(config), torch.float32)
    monkeypatch.setattr(footprints, "_MANY", 6)
    counted = footprint(config, _batch(config), torch.float32)
    assert followed.peaks == counted.peaks
    assert (followed.operations, followed.weights) == (counted.operations, counted.weights)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(deep_folder))
    adapted = make_trainable(model.requires_grad_(False), config)
    assert counted.weights.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.weights.frozen == sum(p.numel() for p in adapted.parameters() if not p.requires_grad)


@pytest.mark.parametrize("changes", [{"lora": None}, {"model.load_in_4bit": True}], ids=["full", "4-bit"])
def test_weights_are_those_that_are_held(changes: dict, deep_folder: Path, make_config: Callable[..., Config]):
    config = make_config(**{"model.name_or_path": str(deep_folder), **changes})
    cluster = Cluster(ranks=1, memory=80, bandwidth=50, tflops=1)
    workload = Workload([made_up(n, 64) for n in range(4)], 64, known=False)
    holds = Forecaster(workload, torch.float32).forecast(config, cluster).holds
    settings = transformers.AutoConfig.from_pretrained(deep_folder)
    model = transformers.AutoModelForCausalLM.from_config(settings).requires_grad_(False)
    if config.lora is None:
        size = sum(p.numel() for p in model.parameters())
        assert holds["trained weights"] == 4 * size and holds["optimizer"] == 12 * size
        return
    model.save_pretrained(deep_folder)
    loaded = load_model(config.model, torch.float32)
    packed = [m.weight for m in loaded.modules() if hasattr(m.weight if hasattr(m, "weight") else m, "quant_state")]
    scales = [scale for p in packed for scale in (p.quant_state.absmax, p.quant_state.state2.absmax)]
    exact = sum(t.nbytes for t in [*packed, *scales])
    assert len(packed) == 42 and holds["weights in 4 bits"] == pytest.approx(exact, rel=0.05)
    assert holds["frozen weights"] == sum(p.nbytes for p in loaded.parameters() if p.is_floating_point())


def test_operations_are_those_of_a_real_step(deep_folder: Path, make_config: Callable[..., Config]):
    from torch.utils.flop_counter import FlopCounterMode

    config = make_config(method={"name": "noisy_sft"}, **{"model.name_or_path": str(deep_folder)})
    settings = transformers.AutoConfig.from_pretrained(deep_folder)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    lm = PerturbableLM(make_trainable(model.requires_grad_(False), config).train())
    with FlopCounterMode(display=False) as counter:
        build_method(config.method, seed=1, scale=1.0).backward(lm, _batch(config))
    real = counter.get_total_flops()
    # Eager attention multiplies the masked half too, and its backward has one product less than the flash kernel's.
    assert footprint(config, _batch(config), torch.float32).operations == pytest.approx(real, rel=0.05)


def test_sweeps_are_those_that_were_measured(make_config: Callable[..., Config]):
    measured = json.loads((Path(__file__).parents[2] / "results/step_cost/traffic.json").read_text())
    by_name = {row["mode"]: row for row in measured["rows"]}
    of = {
        "sft": {"method": {"name": "noisy_sft"}},
        "anit": {"method.name": "anit"},
        "anit_clean": {"method.name": "anit", "method.gradient": "clean"},
        "anit_naive": {"method.name": "anit", "method.passes": "separate"},
        "anit_pipelined": {"method.name": "anit", "method.schedule": "pipelined"},
        "anit_tree": {"method.name": "anit", **TREE},
    }

    def swept(config: Config) -> int:
        schedule = config.method.schedule
        trunk = schedule == "prefix_tree" and config.attacks_behind_context
        return sweeps(config.method, schedule, 4, trunk=trunk)

    once = by_name["sft"]["gathered_bytes"] / swept(make_config(**of["sft"]))
    for name, changes in of.items():
        predicted = swept(make_config(**changes)) * once
        assert predicted == pytest.approx(by_name[name]["gathered_bytes"], rel=0.06), name


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_auto_takes_a_tree_where_the_trainer_would(
    dropout: float, deep_folder: Path, make_config: Callable[..., Config]
):
    changes = {**TREE, "method.schedule": "auto", "lora.dropout": dropout}
    config = make_config(**{"model.name_or_path": str(deep_folder), "method.name": "anit", **changes})
    workload = Workload([made_up(n, 64) for n in range(8)], 64, known=False)
    cluster = Cluster(ranks=1, memory=80, bandwidth=50, tflops=1)
    decided = Forecaster(workload, torch.float32).decided(config, cluster).method.schedule
    assert (decided == "prefix_tree") == (dropout == 0)


def test_the_command_says_what_does_not_fit_and_what_would(
    deep_folder: Path, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    config = make_config(**{"model.name_or_path": str(deep_folder), "method.name": "anit", "train.micro_batch": 2})
    file = tmp_path / "plan.yaml"
    file.write_text(config.to_yaml())
    monkeypatch.setattr(sys, "argv", ["anit", "plan", str(file), "--gpus", "1,8", "--gpu-memory", "0.001"])
    main()
    said = capsys.readouterr().out
    assert "does not fit" in said and "train.activation_checkpointing: true" in said
    assert "| 8 | " in said and "data.max_length; the data are not here" in said
    monkeypatch.setattr(sys, "argv", ["anit", "plan", str(file), "--gpus", "none"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2 and "whole numbers of ranks" in capsys.readouterr().err
