"""`anit plan`: counts against real steps and real models, and what the command says."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from matrix import rows

from anit_ds.adversarial import PerturbableLM, build_method
from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.modeling import load_model, make_trainable
from anit_ds.planning import footprint as footprints
from anit_ds.planning import line
from anit_ds.planning.footprint import Visit, Weights, footprint
from anit_ds.planning.forecast import Forecaster
from anit_ds.planning.simulation import Cluster, gathered, play
from anit_ds.planning.workload import Workload, made_up
from anit_ds.training.batching import Split

REPOSITORY = Path(__file__).parents[2]
PIPELINED = {"method.schedule": "pipelined", "lora.dropout": 0.0}
TREE = {"method.schedule": "prefix_tree", "method.tokens": "instruction", "prompt.order": "instruction_last",
        "lora.dropout": 0.0}  # fmt: skip


@pytest.fixture
def deep_folder(tmp_path: Path) -> Path:
    """A model of five layers, one more than are counted, its config.json alone."""
    return _written(tmp_path / "deep", layers=5)


@pytest.fixture
def shallow_folder(tmp_path: Path) -> Path:
    """The same with one layer, which is counted once and not at two depths."""
    return _written(tmp_path / "shallow", layers=1)


def _written(folder: Path, *, layers: int) -> Path:
    settings = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=True,
    )  # fmt: skip
    settings.architectures = ["LlamaForCausalLM"]
    settings.save_pretrained(folder)
    return folder


def _batch(config: Config):
    return Workload([made_up(n, 64) for n in range(2)]).micro_batch(config, 2)


@pytest.mark.parametrize("changes", [PIPELINED, TREE], ids=["pipelined", "tree"])
def test_two_depths_give_every_depth(
    changes: dict, deep_folder: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    lora = {"lora.targets": ["q_proj"]}
    config = make_config(**{"model.name_or_path": str(deep_folder), "method.name": "anit", **lora, **changes})
    followed = footprint(config, _batch(config), torch.float32, ahead=True)
    monkeypatch.setattr(footprints, "_MANY", 5)
    counted = footprint(config, _batch(config), torch.float32, ahead=True)
    assert followed == counted
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(deep_folder))
    adapted = make_trainable(model.requires_grad_(False), config)
    assert counted.weights.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.weights.frozen == sum(p.numel() for p in adapted.parameters() if not p.requires_grad)


def _holds(config: Config) -> dict[str, int]:
    workload = Workload([made_up(n, 64) for n in range(4)])
    cluster = Cluster(ranks=1, memory=80, bandwidth=50, tflops=1)
    return Forecaster(workload, torch.float32).forecast(config, cluster).holds


def test_every_weight_that_is_trained_is_held(shallow_folder: Path, make_config: Callable[..., Config]):
    holds = _holds(make_config(lora=None, **{"model.name_or_path": str(shallow_folder)}))
    settings = transformers.AutoConfig.from_pretrained(shallow_folder)
    size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(settings).parameters())
    assert holds["trained weights"] == 4 * size and holds["optimizer"] == 12 * size


def test_activations_are_counted_beside_every_weights_gradient(deep_folder: Path, make_config: Callable[..., Config]):
    """What a layer keeps for its backward pass does not shrink because that pass makes gradients."""
    sft = {"method": {"name": "sft"}, "model.name_or_path": str(deep_folder)}
    configs = [make_config(**sft, **given) for given in ({"lora": None}, {"lora.targets": ["q_proj"]})]
    few = Workload([made_up(0, 64)]).micro_batch(configs[0], 1)
    every, adapters = (footprint(config, few, torch.float32).peak(1) for config in configs)
    assert adapters < every < 3 * adapters


def test_weights_in_main_memory_are_not_on_the_gpu(deep_folder: Path, make_config: Callable[..., Config]):
    zero = {"stage": 3, "stage3_max_live_parameters": 0, "offload_param": {"device": "cpu"}}
    holds = _holds(make_config(deepspeed={"zero_optimization": zero}, **{"model.name_or_path": str(deep_folder)}))
    assert "frozen weights" not in holds and "trained weights" not in holds and holds["gathered layers"] > 0


def test_weights_in_4_bits_are_those_that_are_held(deep_folder: Path, make_config: Callable[..., Config]):
    sft = {"method": {"name": "noisy_sft"}, "model.name_or_path": str(deep_folder)}
    config = make_config(**sft, **{"model.load_in_4bit": True, "lora.targets": ["q_proj"]})
    holds = _holds(config)
    settings = transformers.AutoConfig.from_pretrained(deep_folder)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(deep_folder)
    loaded = load_model(config.model, torch.float32)
    packed = [m.weight for m in loaded.modules() if hasattr(m.weight if hasattr(m, "weight") else m, "quant_state")]
    scales = [scale for p in packed for scale in (p.quant_state.absmax, p.quant_state.state2.absmax)]
    exact = sum(t.nbytes for t in [*packed, *scales])
    assert len(packed) == 35 and holds["weights in 4 bits"] == pytest.approx(exact, rel=0.05)
    assert holds["frozen weights"] == sum(p.nbytes for p in loaded.parameters() if p.is_floating_point())


@pytest.mark.parametrize("name, steps", [("noisy_sft", 1), ("anit", 2), ("freeat", 3)])
def test_all_steps_on_a_minibatch_are_counted(
    name: str, steps: int, shallow_folder: Path, make_config: Callable[..., Config]
):
    from torch.utils.flop_counter import FlopCounterMode

    config = make_config(
        method={"name": name, "schedule": "three_pass"},
        **{"model.name_or_path": str(shallow_folder), "train.global_batch": 2, "train.micro_batch": 2},
    )
    settings = transformers.AutoConfig.from_pretrained(shallow_folder)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    lm = PerturbableLM(make_trainable(model.requires_grad_(False), config).train())
    method, batch = build_method(config.method, seed=1, scale=1.0), _batch(config)
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            method.backward(lm, dataclasses.replace(batch, step=step))
    counted = footprint(config, batch, torch.float32)
    operations = [sum(visit.operations for visit in visits) for visits in counted.steps(1)]
    assert len(operations) == steps
    # Eager attention multiplies the masked half too, and its backward has one product less than the flash kernel's.
    assert sum(operations) == pytest.approx(counter.get_total_flops(), rel=0.05)
    # What waits for the next step on the minibatch, of each micro-batch: numbers of the size of its embeddings.
    kept = batch.input_ids.numel() * settings.hidden_size * 4 if steps > 1 else 0
    assert counted.peak(3) - counted.peak(1) == pytest.approx(2 * kept, rel=0.01)
    plans = Forecaster(Workload([made_up(n, 64) for n in range(2)]), torch.float32)
    one = plans.forecast(config, Cluster(ranks=1, memory=80, bandwidth=50, tflops=1))
    assert one.step.compute_seconds == pytest.approx(sum(operations) / steps / 1e12)


@pytest.mark.parametrize("mode", rows(["anit_pipelined", "anit_tree"], quick=["anit_pipelined"]))
def test_gathers_are_those_that_two_ranks_made(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import traffic

    traffic.write_inputs(tmp_path, samples=16)
    config = traffic.run_config(tmp_path, mode, ranks=2, micro_batches=4, padding_free=False)
    counted = footprint(config, Workload.of(config).micro_batch(config, 2), torch.float32, ahead=True)
    elements = sum(gathered(counted.steps(4)[0], counted.weights, config.deepspeed["zero_optimization"]))
    made = json.loads((REPOSITORY / "results/step_cost/traffic.json").read_text())["rows"]
    (measured,) = (row["gathered_bytes"] for row in made if row["mode"] == mode)
    # A trunk's backward pass does not reach all of the last layer; all other modes are the same bytes.
    assert 4 * elements == pytest.approx(measured, rel=0.006 if mode == "anit_tree" else 0)


def test_a_step_takes_what_its_parts_take_and_no_less_than_either():
    layers = [Visit(n, backward=False, attack=False, operations=10**12) for n in range(4)]
    weights = Weights(frozen=4 * 10**8, trained=0, units={"embeddings": (), "layer": (10**8,), "rest": ()})
    slow, fast = (Cluster(ranks=8, memory=80, bandwidth=50, tflops=tflops) for tflops in (1, 10_000))
    gather = slow.collective_seconds(2e8)
    assert gather == pytest.approx(2e8 * 7 / 8 / 400e9, rel=0.1)  # NVLink, and a little to begin
    of = {"weights": weights, "zero": {"stage3_prefetch_bucket_size": 10**8}, "stage": 3, "itemsize": 2, "share": 1.0}
    assert play(layers, cluster=slow, reductions=0, **of).seconds == pytest.approx(gather + 4 * 1.0)
    assert play(layers, cluster=fast, reductions=0, **of).seconds == pytest.approx(4 * gather + 1e-4)
    assert Cluster(4096, 80, 50, 400).collective_seconds(2e8) > 5 * gather  # a ring of 4,096 hops


def test_ranks_that_wait_for_each_other_take_longer():
    samples = [made_up(n, 64 + 8 * (n % 25)) for n in range(100)]
    share = Workload.of_samples(samples).slowest_share
    alone = share(64, Split(64, 1), 1, lockstep=True)
    mean = sum(len(sample) for sample in samples) / 100 / 256
    assert alone == pytest.approx(mean, rel=0.1)
    even = 1024, Split(4, 4), 64
    assert alone < share(*even, lockstep=False) < share(*even, lockstep=True) <= 1
    alike = Workload([made_up(n, 64) for n in range(4)]).slowest_share
    assert alike(*even, lockstep=True) == 1
    assert alike(33, Split(3, 2), 8, lockstep=False) == pytest.approx(5 / 6), "five samples in room for six"


def test_auto_takes_a_tree_where_the_trainer_would(shallow_folder: Path, make_config: Callable[..., Config]):
    auto = {**TREE, "method.schedule": "auto", "method.name": "anit", "model.name_or_path": str(shallow_folder),
            "train.micro_batch": 2, "lora.targets": ["q_proj"]}  # fmt: skip
    cluster = Cluster(ranks=1, memory=80, bandwidth=50, tflops=1)
    plans = Forecaster(Workload([made_up(n, 64) for n in range(4)]), torch.float32)
    assert plans.decided(make_config(**auto), cluster).method.schedule == "prefix_tree"
    assert plans.decided(make_config(**{**auto, "lora.dropout": 0.1}), cluster).method.schedule != "prefix_tree"


def test_the_command_says_what_does_not_fit_and_what_would(
    shallow_folder: Path, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    config = make_config(**{
        "model.name_or_path": str(shallow_folder), "method.name": "anit", "train.micro_batch": 2,
        "train.global_batch": 32, "lora.targets": ["q_proj"],
    })  # fmt: skip
    file = tmp_path / "plan.yaml"
    file.write_text(config.to_yaml())
    monkeypatch.setattr(sys, "argv", ["anit", "plan", str(file), "--gpus", "1,8,64", "--gpu-memory", "0.001"])
    main()
    said = capsys.readouterr().out
    assert "does not fit" in said and "train.activation_checkpointing: true" in said
    assert "`anit train` refuses 64 ranks" in said and "| 8 | " in said
    assert "data.max_length; the data are not here" in said
    monkeypatch.setattr(sys, "argv", ["anit", "plan", str(file), "--gpus", "none"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2 and "whole numbers of ranks" in capsys.readouterr().err


def test_training_says_first_what_it_will_need(
    shallow_folder: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    config = make_config(**{"model.name_or_path": str(shallow_folder), "method": {"name": "noisy_sft"}})
    samples = [made_up(n, 64) for n in range(4)]

    def said(memory: int, **of) -> str:
        return line.forecast_line(config, samples, torch.float32, ranks=1, memory=memory, **of)

    assert said(80 * 10**9, gpu=True) == ""  # so small a model is not worth the time
    monkeypatch.setattr(line, "_WORTH_IT", 0)
    assert said(80 * 10**9, gpu=True).startswith("forecast: 0.0 GB a rank, most of it activations")
    assert "s a step on GPUs" in said(80 * 10**9, gpu=True) and "does not fit" not in said(80 * 10**9, gpu=True)
    assert "does not fit: a rank's share of this machine" in said(10**6, gpu=False)
