"""The mix-in inside TRL's SFTTrainer: the losses and weights of a loop of our own on the very same batches."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import SFTConfig, SFTTrainer

from anit_ds.adversarial import NRM, Batch, PerturbableLM, build_method
from anit_ds.adversarial.hf_trainer import AdversarialTrainerMixin
from anit_ds.config import MethodConfig
from anit_ds.tiny import tiny_model, tiny_tokenizer

STEPS, ACCUMULATION, LR = 3, 2, 1e-2


class Recorded(SFTTrainer):
    """Notes each optimizer step's micro-batches and their summed loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: dict[int, list[dict[str, torch.Tensor]]] = {}
        self.losses: dict[int, float] = {}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        step = self.state.global_step
        self.batches.setdefault(step, []).append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses[step] = self.losses.get(step, 0.0) + loss.item()
        return loss


class NRMTrainer(Recorded, AdversarialTrainerMixin, SFTTrainer):
    pass


def lora_model() -> nn.Module:
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(tiny_model().requires_grad_(False), settings)


def trained(kind: type[Recorded], folder: Path, settings: dict[str, Any] | None = None, **more: Any) -> Recorded:
    rows = [
        {"prompt": f"Text {i}: " + "very " * (i % 5) + "good\nAnswer:", "completion": " yes" if i % 3 else " certainly"}
        for i in range(24)
    ]
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=ACCUMULATION,
        learning_rate=LR, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0,
        gradient_checkpointing=False, report_to="none", use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        **{"completion_only_loss": True, "max_steps": STEPS, "logging_steps": 1, **(settings or {})},
    )  # fmt: skip
    data = Dataset.from_list(rows)
    trainer = kind(
        model=lora_model(), processing_class=tiny_tokenizer(), train_dataset=data, eval_dataset=data.take(4),
        args=arguments, **more,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_trl_with_the_mix_in_is_our_own_loop(tmp_path: Path):
    method = {"eps": 1.0, "alpha": 0.3, "ball": "linf", "seed": 7}
    trainer = trained(NRMTrainer, tmp_path, method=NRM(**method), beta=0.25)
    model = lora_model()
    lm, nrm = PerturbableLM(model), NRM(**method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    worst = 0.0
    for step, batches in trainer.batches.items():
        assert len(batches) == ACCUMULATION
        tokens = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
        loss = 0.0
        for b in batches:
            batch = Batch.from_labels(
                b["input_ids"], b["attention_mask"], b["labels"], beta=0.25, step=step, denominator=tokens
            )
            stats = nrm.backward(lm, batch)
            loss += (stats["loss/clean"][0] + stats["loss/adversarial"][0]).item() / tokens
        optimizer.step()
        optimizer.zero_grad()
        worst = max(worst, abs(loss - trainer.losses[step]))
    theirs = dict(trainer.model.named_parameters())
    moved = max((theirs[n] - p).abs().max().item() for n, p in lora_model().named_parameters())
    off = max((theirs[n] - p).abs().max().item() for n, p in model.named_parameters())
    print(f"TRL with the mix-in against our loop, {STEPS} steps: loss {worst:.1e}, weights {off:.1e} of {moved:.1e}")
    assert len(trainer.batches) == STEPS and worst <= 1e-5 and off <= 1e-6 < moved
    assert any("nrm/delta1_norm" in line for line in trainer.state.log_history)


def test_statistics_are_of_the_steps_that_the_loss_beside_them_is_of(tmp_path: Path):
    evaluated = {"max_steps": 4, "logging_steps": 4, "eval_strategy": "steps", "eval_steps": 3}
    trainer = trained(NRMTrainer, tmp_path, evaluated)
    (told,) = (line for line in trainer.state.log_history if "loss" in line)
    assert told["nrm/delta0_norm"] == 0 < told["nrm/cosine"], "without a method: an attack, and no random start"
    scored = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert scored and not any("loss/clean" in line for line in scored)
    # `loss` weighs steps alike and the statistics tokens, which are nearly as many in each.
    assert told["loss"] == pytest.approx(told["loss/clean"] + told["loss/adversarial"], rel=2e-3)


def test_without_an_adversarial_loss_it_is_trl(tmp_path: Path):
    plain = trained(Recorded, tmp_path / "plain")
    mixed = trained(NRMTrainer, tmp_path / "mixed", method=NRM(lambda_=0.0))
    assert list(mixed.losses) == list(plain.losses)
    assert max(abs(mixed.losses[s] - plain.losses[s]) for s in plain.losses) <= 1e-5


def test_a_packed_collator_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no attention_mask"):
        trainer = NRMTrainer(
            model=lora_model(),
            processing_class=tiny_tokenizer(),
            train_dataset=Dataset.from_list([{"prompt": "a", "completion": " b"}]),
            args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
        )
        ids = torch.tensor([[2, 3]])
        trainer.training_step(trainer.model, {"input_ids": ids, "labels": ids})


@pytest.mark.parametrize(
    "settings, said",
    [({"label_smoothing_factor": 0.1}, "label_smoothing_factor"), ({"loss_type": "dft"}, "loss_type=dft")],
    ids=str,
)
def test_another_loss_is_refused(settings: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"the plain loss of the answers, .*{said}"):
        trained(NRMTrainer, tmp_path, settings)


def test_a_batch_without_a_prompt_is_refused_and_the_optimizer_is_in_training(tmp_path: Path):
    with pytest.raises(ValueError, match="no prompt is left to perturb; set completion_only_loss"):
        trained(NRMTrainer, tmp_path, {"completion_only_loss": False})

    class Modes(torch.optim.SGD):
        steps_in: ClassVar[list[str]] = []
        mode = "train"

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

        def step(self, closure: Any = None) -> None:
            self.steps_in.append(self.mode)
            super().step()

    class Trainer(NRMTrainer):
        def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
            self.optimizer = Modes([p for p in self.model.parameters() if p.requires_grad], lr=LR)
            return self.optimizer

    trained(Trainer, tmp_path, {"eval_strategy": "steps", "eval_steps": 1})
    assert Modes.steps_in == ["train"] * STEPS


@pytest.mark.parametrize(
    "settings",
    [{"name": "freeat", "steps": 2}, {"gradient": "clean", "updates": "alternating", "warmup": 0.5}],
    ids=str,
)
def test_a_method_that_replays_is_refused(settings: dict[str, Any], tmp_path: Path):
    method = build_method(MethodConfig(**settings), seed=42, scale=1.0, total_steps=4)
    with pytest.raises(ValueError, match="steps 2 times on each minibatch"):
        NRMTrainer(
            model=lora_model(), args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list([{"prompt": "a", "completion": " b"}]), processing_class=tiny_tokenizer(),
            method=method,
        )  # fmt: skip


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["trl_nrm.py"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "trl_nrm.py"), run_name="__main__")
    assert "'loss/adversarial'" in capsys.readouterr().out
