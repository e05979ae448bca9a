"""The training steps that step_cost.py and scaling.py compare: a table of modes, and one step of any of them.

Every mode gets a model of its own (the frozen weights shared with the others), the same LoRA, the same samples and
PyTorch's AdamW. A step is zero_grad, the forward and backward passes, and the optimizer's step; gradient clipping, the
schedule, the data loader and DeepSpeed are in none of them. TRL's and Hugging Face's steps are their trainers' real
`training_step` on what their own collators make of the samples, with the model as `accelerator.prepare` wraps it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anit_ds import adversarial
from anit_ds.adversarial import Batch, StepStats, embedding_scale
from anit_ds.config import Config
from anit_ds.configfile import validate
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.modeling import load_model, load_tokenizer, make_trainable, resolve_dtype
from anit_ds.training.batching import collate, plan_epoch

IGNORE = -100
Trainer = Literal["trl", "trl_defaults", "hf", "naive", "ours"]


@dataclass(frozen=True)
class Mode:
    """A row of the tables.

    reference: the mode whose loss and adapter gradients this one must have in float32, on the same samples.
    sft: the mode that `ratio_to_sft` divides by, plain fine-tuning on the same prompts.
    """

    name: str
    label: str
    trainer: Trainer = "ours"
    method: dict[str, Any] = field(default_factory=dict)  # changes to the YAML's section `method`
    train: dict[str, Any] = field(default_factory=dict)  # and to `train`
    order: Literal["paper", "instruction_last"] = "paper"
    micro_batches: int = 1  # how many the batch is dealt into, with gradients accumulated over them
    reference: str | None = None
    sft: str = "sft"


_ANIT = {"name": "anit", "preset": "paper"}
_OURS = {"name": "anit", "preset": "ours"}
_JOINT = {**_OURS, "updates": "joint"}
_SFT = {"name": "noisy_sft"}
_LAST = {**_ANIT, "tokens": "instruction"}
_TREE = {"schedule": "prefix_tree"}
_PIPELINED = {**_ANIT, "schedule": "pipelined"}
_PACKED = {"padding_free": True}
_RELATIVE = {"eps": 0.3, "eps_unit": "relative"}

# fmt: off
MODES = (
    Mode("trl", "TRL SFTTrainer", "trl", reference="hf"),
    Mode("trl_defaults", "TRL SFTTrainer as it comes", "trl_defaults"),
    Mode("hf", "Hugging Face Trainer", "hf"),
    Mode("sft", "sft", method=_SFT, reference="hf"),
    Mode("sft_packed", "sft, padding-free", method=_SFT, train=_PACKED, reference="sft"),
    Mode("anit_naive", "anit by hand", "naive", method=_ANIT),
    Mode("anit", "anit", method=_ANIT, reference="anit_naive"),
    Mode("anit_separate", "anit, passes: separate", method={**_ANIT, "passes": "separate"}, reference="anit"),
    Mode("anit_packed", "anit, padding-free", method=_ANIT, train=_PACKED, reference="anit"),
    Mode("anit_micro2", "anit, two micro-batches", method=_ANIT, micro_batches=2, reference="anit"),
    Mode("anit_pipelined", "anit, two, pipelined", method=_PIPELINED, micro_batches=2, reference="anit"),
    Mode("anit_clean", "anit, gradient: clean", method={**_ANIT, "gradient": "clean"}),
    Mode("fgsm", "fgsm", method={"name": "fgsm", **_RELATIVE}),
    Mode("pgd5", "pgd, 5 steps", method={"name": "pgd", "steps": 5, "alpha": 0.1, **_RELATIVE}),
    Mode("freelb5", "freelb, 5 steps", method={"name": "freelb", "steps": 5, "alpha": 0.1, **_RELATIVE}),
    Mode("sft_tree", "sft, tree", method={**_SFT, **_TREE}, reference="sft"),
    Mode("anit_tree", "anit, tree", method={**_ANIT, **_TREE}, reference="anit"),
    Mode("sft_last", "sft, instruction last", method=_SFT, order="instruction_last", sft="sft_last"),
    Mode("anit_last", "anit, instruction last", method=_LAST, order="instruction_last", sft="sft_last"),
    Mode("anit_clean_last", "anit, gradient: clean, instruction last", method={**_LAST, "gradient": "clean"},
         order="instruction_last", sft="sft_last"),
    Mode("sft_last_tree", "sft, instruction last, tree", method={**_SFT, **_TREE}, order="instruction_last",
         sft="sft_last", reference="sft_last"),
    Mode("anit_last_tree", "anit, instruction last, tree", method={**_LAST, **_TREE}, order="instruction_last",
         sft="sft_last", reference="anit_last"),
    Mode("anit_clean_last_tree", "anit, gradient: clean, instruction last, tree",
         method={**_LAST, **_TREE, "gradient": "clean"}, order="instruction_last", sft="sft_last",
         reference="anit_clean_last"),
    Mode("ours_last", "anit, preset ours, both steps, instruction last", method=_OURS, order="instruction_last",
         sft="sft_last"),
    Mode("ours_last_tree", "anit, preset ours, both steps, instruction last, tree", method={**_OURS, **_TREE},
         order="instruction_last", sft="sft_last", reference="ours_last"),
    Mode("joint_last", "anit, preset ours, joint updates, instruction last", method=_JOINT, order="instruction_last",
         sft="sft_last"),
    Mode("joint_last_tree", "anit, preset ours, joint updates, instruction last, tree", method={**_JOINT, **_TREE},
         order="instruction_last", sft="sft_last", reference="joint_last"),
)
# fmt: on


def run_config(settings: dict[str, Any], mode: Mode | None = None) -> Config:
    """The run's YAML of a mode. `settings` are sections that all modes share: model, and data where there is any."""
    raw = {
        **settings,
        "data": {"dataset": "sst2", **settings.get("data", {})},
        "noise": {"kind": "replacement"},
        "lora": {"r": 16, "alpha": 16, "dropout": 0.0},
        "out": "nowhere",
    }
    if mode:
        raw |= {"method": mode.method, "train": mode.train, "prompt": {"order": mode.order}}
    return validate(raw, source="the benchmark")


@dataclass(frozen=True)
class Workload:
    """Batches of one data set, the same samples in each prompt order, and the data set's beta."""

    name: str
    beta: float
    batches: dict[str, list[list[Encoded]]]  # order -> batches

    @classmethod
    def read(cls, settings: dict[str, Any], dataset: str, folder: Path, *, count: int, rows: int) -> Workload:
        """`count` batches of `rows` training samples of folder/dataset, noisy as in a run, in a shuffled epoch's order.

        They are not grouped by length, because TRL and Hugging Face do not either by default. Raises InputError: no
        such data set, too few samples.
        """
        data = {**settings.get("data", {}), "dataset": dataset, "path": str(folder / dataset)}
        config = run_config({**settings, "data": data})
        run_data = RunData.load(config, None)
        samples = [sample for (sample,) in run_data.train_samples(seed=config.train.seed, epoch=0)]
        if len(samples) < count * rows:
            raise InputError(f"{dataset}: {len(samples)} training samples; {count} batches of {rows} need more")
        tokenizer = load_tokenizer(config.model)
        plan = plan_epoch([0] * len(samples), rows, seed=config.train.seed, epoch=0, group_by_length=False)[:count]
        batches = {}
        for order in ("paper", "instruction_last"):
            encoder = PromptEncoder(tokenizer, order=order, max_length=config.data.max_length)
            batches[order] = [encoder.encode([samples[i] for i in indices]) for indices in plan]
        return cls(dataset, run_data.betas[dataset], batches)


@dataclass(frozen=True)
class Ready:
    """A batch as a mode takes it."""

    inputs: Any
    tokens: int
    padding_share: float


class Foundation:
    """The model, tokenizer and embedding scale that all modes start from; frozen weights are loaded once."""

    def __init__(self, settings: dict[str, Any], dtype: torch.dtype) -> None:
        config = run_config(settings)
        self.settings, self.dtype = settings, dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(config.model)
        self.model = load_model(config.model, dtype).to(self.device)
        self.scale = embedding_scale(self.model)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        embeddings: torch.nn.Embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return embeddings.num_embeddings

    @classmethod
    def for_this_device(cls, settings: dict[str, Any]) -> Foundation:
        """In bfloat16 where the hardware computes it natively, else in float32."""
        return cls(settings, resolve_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu"))

    def adapted(self, config: Config) -> nn.Module:
        """A model of its own with a fresh adapter, the same at every call; it shares the frozen weights."""
        shared = {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}
        return make_trainable(copy.deepcopy(self.model, memo=shared), config)


class Stepper:
    """One mode on a model of its own: `prepare` a batch (not part of a step), then `step` or only `gradients`."""

    def __init__(self, mode: Mode, foundation: Foundation) -> None:
        self.mode, self.foundation = mode, foundation
        self.config = run_config(foundation.settings, mode)
        model = foundation.adapted(self.config).train()
        build = {"naive": _NaiveAnit, "ours": _Ours}.get(mode.trainer, _TransformersTrainer)
        self.passes: Any = build(model, mode, self.config, foundation)
        self.parameters: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=self.config.train.weight_decay)

    def prepare(self, samples: Sequence[Encoded], beta: float) -> Ready:
        """Collate samples as the mode's trainer does, on the device."""
        inputs, places = self.passes.collate(samples, beta)
        tokens = sum(len(s) for s in samples)
        return Ready(inputs, tokens, 1 - tokens / places)

    def gradients(self, ready: Ready, replay: int = 0) -> Tensor:
        """Leave the adapter's gradients in place; returns the mean loss of an answer token, the clean one if there is
        one."""
        self.optimizer.zero_grad(set_to_none=True)
        return self.passes.backward(ready.inputs, replay)

    def step(self, ready: Ready) -> None:
        """The optimizer steps that are made on a minibatch: one, or with `updates: alternating` two."""
        for replay in range(self.config.method.replays):
            self.gradients(ready, replay)
            self.optimizer.step()

    def settle(self) -> None:
        """Let AdamW allocate its moments, as after the first step of a run, and move no weight."""
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class _Ours:
    """A method of this project on a plain module, through the same calls as the trainer's."""

    def __init__(self, model: nn.Module, mode: Mode, config: Config, foundation: Foundation) -> None:
        self.mode, self.config, self.foundation = mode, config, foundation
        tree = config.method.schedule == "prefix_tree"
        self.lm: Any = (adversarial.PrefixTreeLM if tree else adversarial.PerturbableLM)(model)
        self.method: Any = adversarial.build_method(config.method, seed=config.train.seed, scale=foundation.scale)
        self.method.attach(self.lm)

    def collate(self, samples: Sequence[Encoded], beta: float) -> tuple[list[Batch], int]:
        per_micro = -(-len(samples) // self.mode.micro_batches)
        answer_tokens = float(sum(len(s.answer) for s in samples))
        batches = []
        for first in range(0, len(samples), per_micro):
            micro = samples[first : first + per_micro]
            batch = collate(
                micro,
                pad_id=self.foundation.tokenizer.pad_token_id,
                tokens=self.config.method.tokens,
                beta=[beta] * len(micro),
                step=0,
                denominator=answer_tokens,
                packed=self.config.packs,
            )
            batches.append(self.lm.prepare(batch).to(self.foundation.device))
        return batches, sum(batch.attended.numel() for batch in batches)

    def backward(self, batches: list[Batch], replay: int = 0) -> Tensor:
        stats = StepStats()
        batches = [replace(batch, step=replay) for batch in batches]
        for batch, upcoming in zip(batches, [*batches[1:], None], strict=True):
            self.method.foresee(upcoming)
            stats.merge(self.method.backward(self.lm, batch))
        total, weight = stats["loss/clean" if "loss/clean" in stats else "loss/adversarial"]
        return total / weight


class _NaiveAnit(_Ours):
    """ANIT as one writes it from the paper: three passes apart, each with the model's own loss over the full head.

    delta0 and delta1 come from the same kernels, or nothing could be compared.
    """

    def __init__(self, model: nn.Module, mode: Mode, config: Config, foundation: Foundation) -> None:
        super().__init__(model, mode, config, foundation)
        self.lm.remove()
        self.model: Any = model

    def backward(self, batches: list[Batch], replay: int = 0) -> Tensor:
        (batch,) = batches
        labels = torch.full_like(batch.input_ids, IGNORE)
        labels[batch.target_rows, batch.target_positions + 1] = batch.target_ids
        e = self.model.get_input_embeddings()(batch.input_ids).detach()
        x0 = self.method._start(e, batch).requires_grad_()
        (g,) = torch.autograd.grad(self._loss(x0, batch, labels), x0)
        x1, _ = self.method._step(g, e, batch)
        clean = self._loss(e, batch, labels)
        clean.backward()
        (self.method.lambda_ * self._loss(x1, batch, labels)).backward()
        return clean.detach()

    def _loss(self, x: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        outputs = self.model(
            inputs_embeds=x,
            attention_mask=batch.attended.long(),
            position_ids=batch.position_ids(),
            labels=labels,
            num_items_in_batch=batch.mean_over,
            use_cache=False,
        )
        return outputs.loss


class _TransformersTrainer:
    """transformers.Trainer or trl.SFTTrainer, driven through `training_step`."""

    def __init__(self, model: Any, mode: Mode, config: Config, foundation: Foundation) -> None:
        import accelerate
        import datasets
        import transformers

        # One process holds trainers of several precisions; accelerate keeps the first one's unless told.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.folder = tempfile.TemporaryDirectory()
        arguments: dict[str, Any] = {
            "output_dir": self.folder.name,
            "per_device_train_batch_size": config.train.global_batch,
            "report_to": "none",
            "use_cpu": foundation.device.type == "cpu",
        }
        if mode.trainer != "trl_defaults":
            # The weights are in half precision already; autocast would only add casts.
            arguments |= {"bf16": False, "gradient_checkpointing": False}
        # Neither trainer is asked for its data loader: it only has to be given something.
        rows = datasets.Dataset.from_list([{"input_ids": [1, 2], "labels": [IGNORE, 2]}])
        tokenizer = copy.deepcopy(foundation.tokenizer)
        if mode.trainer == "hf":
            self.trainer: Any = transformers.Trainer(
                model=model,
                args=transformers.TrainingArguments(**arguments),
                train_dataset=rows,
                data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
                processing_class=tokenizer,
            )
        else:
            import trl

            self.trainer = trl.SFTTrainer(
                model=model, args=trl.SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer
            )
        if self.trainer.args.gradient_checkpointing:
            self.trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.accelerator.prepare(self.trainer.model)

    def collate(self, samples: Sequence[Encoded], beta: float) -> tuple[dict[str, Tensor], int]:
        rows = [
            {"input_ids": [*s.prompt, *s.answer], "labels": [*[IGNORE] * len(s.prompt), *s.answer]} for s in samples
        ]
        inputs = {k: v.to(self.trainer.args.device) for k, v in self.trainer.data_collator(rows).items()}
        return inputs, inputs["attention_mask"].numel()

    def backward(self, inputs: dict[str, Tensor], replay: int = 0) -> Tensor:
        answer_tokens = (inputs["labels"][:, 1:] != IGNORE).sum()
        return self.trainer.training_step(self.model, dict(inputs), num_items_in_batch=answer_tokens)
