"""`method.schedule: prefix_tree` as a user meets it: prompts in its order, evaluation, dropout, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from formulas import formulas
from matrix import rows
from nrm import FULL_NRM
from plain_loop import plain_loop
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.instructions import load_instructions
from anit_ds.data.prompts import PromptEncoder, render_prompt
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.runfolder import RunFolder
from anit_ds.tiny import tiny_model, tiny_tokenizer
from anit_ds.training import train

MakeConfig = Callable[..., Config]
TREE = {"prompt.order": "instruction_last", "method.tokens": "instruction", "method.schedule": "prefix_tree"}


def test_a_method_that_has_no_next_attack_is_refused_in_a_sentence(make_config: MakeConfig):
    with pytest.raises(InputError) as refused:
        make_config(method={"name": "pgd", "schedule": "pipelined"})
    assert "pipelined is for the method anit, not pgd; use schedule" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("data_set", ["sst2", "conll2003", "scierc", "aste-laptop"])
@pytest.mark.parametrize("version", ["concise", "detailed"])
def test_the_instruction_stands_last_in_every_task(data_set: str, version: str):
    told = load_instructions(data_set)
    instruction = told.first(version)
    sample = Sample(
        "a/1", "a", "A text.", (), instruction, instruction, told.question, told.format, told.options, "x",
        "none", 0, 0.0,
    )  # fmt: skip
    made = tiny_tokenizer()
    (encoded,) = PromptEncoder(made, order="instruction_last", max_length=4000).encode([sample])
    first, stop = encoded.instruction
    assert made.decode(encoded.prompt[first:stop]) == instruction
    assert made.decode(encoded.prompt[stop:]) == "\nAnswer:"
    fields = ("Question", "Format", "Option", "Text")
    lines = [line.split(": ")[0] for line in made.decode(encoded.prompt[:first]).splitlines()]
    assert lines == [*fields, "Instruction"]


@pytest.mark.parametrize("method", rows(["sft", "anit"], quick=["anit"]))
def test_evaluation_asks_in_the_order_of_training(make_config: MakeConfig, method: str):
    changes = TREE if method == "anit" else {"prompt.order": "instruction_last", "method": {"name": "sft"}}
    config = make_config(**changes, **{"train.epochs": 4, "train.lr": 1e-2, "lora.r": 8})
    train(config)
    predicted = (Path(config.out) / "eval" / "predictions-test.jsonl").read_text().splitlines()
    samples = RunData.load(config, RunFolder(config.out).data)["jsonl"].split("test")
    base = transformers.AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(Path(config.out) / "adapter")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.name_or_path)
    for sample, line in zip(samples, predicted, strict=True):
        prompt = render_prompt(sample, "instruction_last")
        assert prompt.endswith(f"\nInstruction: {sample.instruction}\nAnswer:")
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answer = model.generate(ids, do_sample=False, max_new_tokens=config.eval.max_new_tokens)[0, ids.shape[1] :]
        assert json.loads(line)["answer"] == tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_a_run_with_dropout_depends_on_its_seed_alone(make_config: MakeConfig):
    runs = [make_config(name, **TREE, **{"lora.dropout": 0.3}) for name in ("one", "two")]
    for config in runs:
        train(config)
    one, two = (load_file(Path(c.out) / "adapter" / "adapter_model.safetensors") for c in runs)
    assert max(w.abs().max().item() for n, w in one.items() if "lora_B" in n) > 1e-3, "it starts at 0"
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line) for line in (Path(runs[0].out) / "metrics.jsonl").read_text().splitlines()]
    assert all(line["nrm/nonfinite"] == 0 for line in steps if "nrm/nonfinite" in line)


@pytest.mark.parametrize(
    "scope",
    [{"prompt.order": "instruction_last", "method.tokens": "instruction"}, {"method.tokens": "text"}],
    ids=["the instruction, last", "the text, last"],
)
def test_auto_takes_the_tree_where_it_saves_and_says_why(make_config: MakeConfig, scope: dict):
    # AdamW divides by small numbers, and what is rounding would be as large as what is wrong.
    behind = {**scope, "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0}
    whole, chosen = make_config("whole", **behind), make_config("auto", **behind, **{"method.schedule": "auto"})
    for config in (whole, chosen):
        train(config)
    said = (Path(chosen.out) / "log-rank0.txt").read_text()
    assert "method.schedule: auto is prefix_tree (per optimizer step and rank: three_pass " in said
    one, two = (load_file(Path(c.out) / "adapter" / "adapter_model.safetensors") for c in (whole, chosen))
    assert max(w.abs().max().item() for n, w in one.items() if "lora_B" in n) > 1e-3
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-5


@pytest.mark.parametrize(
    "changes, chosen, why",
    [
        ({"lora.dropout": 0.1}, "three_pass", "lora.dropout > 0 would share its masks between samples"),
        # A trunk is two more sweeps for each micro-batch, which a tiny batch cannot pay for.
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "pipelined", "tokens in 10 sweeps"),
    ],
    ids=["dropout", "zero3"],
)
def test_auto_leaves_the_tree_where_it_does_not_pay(make_config: MakeConfig, changes: dict, chosen: str, why: str):
    config = make_config(
        **{"prompt.order": "instruction_last", "method.tokens": "instruction", "method.schedule": "auto"},
        **{"train.micro_batch": 2, "train.max_steps": 1, "eval.test": False}, **changes,
    )  # fmt: skip
    train(config)
    said = (Path(config.out) / "log-rank0.txt").read_text()
    assert f"method.schedule: auto is {chosen} " in said and why in said


@pytest.mark.parametrize("scope", ["prompt", "instruction"])
@pytest.mark.parametrize(
    "method",
    [{"name": "sft"}, {"name": "random"}, {"name": "fgm"}, {"name": "pgd"}, {"name": "freelb"}, FULL_NRM,
     {**FULL_NRM, "gradient": "clean"}],
    ids=lambda method: method["name"] + ("-clean" if method.get("gradient") == "clean" else ""),
)  # fmt: skip
def test_what_auto_counts_is_what_passes_through_the_model(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, method: dict, scope: str
):
    passed = 0

    def counting(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += ids.numel() if torch.is_grad_enabled() else 0  # a step alone, no evaluation and no rehearsal
        return embed(self, ids)

    embed = torch.nn.Embedding.forward
    monkeypatch.setattr(torch.nn.Embedding, "forward", counting)
    scoped = method if method["name"] == "sft" else {**method, "tokens": scope}
    config = make_config(
        method={**scoped, "schedule": "auto"},
        **{"prompt.order": "instruction_last", "train.max_steps": 1, "eval.test": False},
    )
    train(config)
    told = re.search(r"auto is (\w+) \((.*)", (Path(config.out) / "log-rank0.txt").read_text())
    assert told and f"{told[1]} {passed} tokens" in told[2], passed
    assert told[1] == "prefix_tree"


@pytest.mark.parametrize(("method", "stage"), [("sft", 3), ("anit", 1)])
def test_auto_trains_whole_prompts_of_a_model_that_no_row_suits(
    make_config: MakeConfig, tmp_path: Path, method: str, stage: int
):
    """Nemotron's layers drop what they are told of a row: without a mask they would see the answer to be learned."""
    tiny_model("nemotron").save_pretrained(tmp_path / "nemotron")
    tiny_tokenizer().save_pretrained(tmp_path / "nemotron")
    shape = {
        "model.name_or_path": str(tmp_path / "nemotron"), "prompt.order": "instruction_last", "train.max_steps": 3,
        "train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0, "eval.test": False,
        "deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
    }  # fmt: skip
    settings = {**FULL_NRM, "eps": 1.0, "alpha": 0.3, "eps_unit": "absolute"} if method == "anit" else {"name": "sft"}
    auto = make_config("auto", **shape, method={**settings, "schedule": "auto"})
    train(auto)
    said = (Path(auto.out) / "log-rank0.txt").read_text()
    assert "auto is three_pass (prefix_tree is left out: a nemotron model answers a sample in a row with" in said
    weights, _ = plain_loop(make_config("plain", **shape, method=settings), formulas()[method])
    saved = load_file(Path(auto.out) / "adapter" / "adapter_model.safetensors")
    assert max((saved[name] - weights[name]).abs().max().item() for name in weights) <= 1e-5
    with pytest.raises(InputError, match="a nemotron model .*; use train.padding_free=false and method.schedule=three"):
        train(make_config("tree", **shape, method={**settings, "schedule": "prefix_tree"}))


def test_a_trunk_s_backward_lets_go_of_each_layer_s_weights(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    """At ZeRO 3, which counts each module's backward passes to come and releases its weights after the last one."""
    known: set[torch.nn.Parameter] = set()
    most = {True: 0, False: 0}  # how many weights were at hand at once, in a forward and in a backward

    def fetch(self: PartitionedParameterCoordinator, module: torch.nn.Module, forward: bool) -> None:
        fetched(self, module, forward)
        known.update(module.parameters())
        most[forward] = max(most[forward], sum(p.ds_status is ZeroParamStatus.AVAILABLE for p in known))

    fetched = PartitionedParameterCoordinator.fetch_sub_module
    monkeypatch.setattr(PartitionedParameterCoordinator, "fetch_sub_module", fetch)
    one_by_one = {
        "stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
    }  # fmt: skip
    changes = {"deepspeed": {"zero_optimization": one_by_one}, "train.max_steps": 1, "eval.test": False}
    train(make_config(**TREE, **changes))
    assert 0 < most[False] <= most[True] < 5 < len(known)
