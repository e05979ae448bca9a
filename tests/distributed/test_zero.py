"""Every ZeRO stage, number of ranks, accumulation and checkpointing gives one-process PyTorch's result.

The reference is a loop without DeepSpeed, without our hooks and without our answer head: `inputs_embeds`, full logits,
and NRM's formulas written out. SGD shows wrong gradient scales, which Adam hides; AdamW at eps 1e-6 shows wrong
moments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ranks import run as run_ranks
from safetensors.torch import load_file

from anit_ds.config import Config
from anit_ds.modeling import add_adapter, load_model, load_tokenizer
from anit_ds.prompts import PromptEncoder
from anit_ds.rundata import RunData
from anit_ds.training.batching import collate, plan_epoch
from anit_ds.training.engine import learning_rate
from anit_kernels import nrm_init

REPOSITORY = Path(__file__).parents[2]
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
OPTIMIZERS = {
    "sgd": {"train.optimizer": "sgd", "train.lr": 0.3, "train.weight_decay": 0.0},
    "adamw": {"train.optimizer": "adamw", "train.lr": 1e-3, "train.adam_eps": 1e-6},
}


def one_process_reference(config: Config) -> tuple[dict[str, torch.Tensor], list[float]]:
    """(adapter after the last step, clean loss of each step) from a plain PyTorch loop over whole global batches."""
    train, method = config.train, config.method
    model = add_adapter(load_model(config.model, torch.float32), config)
    embedding = model.get_input_embeddings()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if train.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=train.lr)
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=train.lr, betas=train.adam_betas, eps=train.adam_eps, weight_decay=train.weight_decay
        )
    data = RunData.load(config, None)
    encoded = PromptEncoder(load_tokenizer(config.model)).encode(data.train_samples(seed=train.seed, epoch=0))
    plans = [plan_epoch([len(e) for e in encoded], train.global_batch, seed=train.seed, epoch=e) for e in range(2)]
    steps = [indices for plan in plans for indices in plan]
    losses = []
    for step, indices in enumerate(steps):
        samples = [encoded[i] for i in indices]
        beta = [data.betas[s.dataset] for s in samples]
        batch = collate(samples, pad_id=0, tokens="prompt", beta=beta, step=step, denominator=1.0)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.target_rows, batch.target_positions + 1] = batch.target_ids

        def mean_loss(inputs: torch.Tensor, batch=batch, labels=labels) -> torch.Tensor:
            logits = model(inputs_embeds=inputs, attention_mask=batch.attended.long()).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

        e = embedding(batch.input_ids).detach()
        x0 = nrm_init(e, batch.scope, batch.attended, train.seed, step, batch.sample_ids, method.eps, batch.beta)
        delta0 = (x0 - e).requires_grad_(True)
        (g,) = torch.autograd.grad(mean_loss(e + delta0), delta0)
        g = g * batch.scope.unsqueeze(-1)
        delta1 = delta0.detach() + method.alpha * g / g.flatten(1).norm(dim=1)[:, None, None]
        norm = delta1.flatten(1).norm(dim=1)[:, None, None]
        delta1 = delta1 * (method.eps / norm).clamp(max=1.0)
        clean = mean_loss(e)
        (clean + method.lambda_ * mean_loss(e + delta1)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, len(steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(clean.item())
    moved = max(p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n)
    assert moved > 1e-3, "lora_B starts at 0: a run that does not move it would agree with anything"
    return {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}, losses


@pytest.mark.slow
@pytest.mark.parametrize("number_of_ranks", [1, 2, 4], ids="{}-ranks".format)
def test_every_stage_is_one_process_pytorch(number_of_ranks: int, make_config: Callable[..., Config]):
    stages = STAGES if number_of_ranks < 4 else ("zero3",)
    worst = 0.0
    for optimizer, settings in OPTIMIZERS.items():
        shape = {"data.instructions": "concise", "method.ball": "frobenius", "eval.test": False, **settings}
        base = make_config(f"{optimizer}-reference", **shape)
        weights, losses = one_process_reference(base)
        runs = {
            (stage, checkpointing): make_config(
                f"{optimizer}-{stage}-{checkpointing}",
                **shape,
                deepspeed=str(REPOSITORY / "ds_configs" / f"{stage}.json"),
                # checkpointing off: no accumulation on two ranks; on: accumulation over several micro-batches
                **{
                    "train.activation_checkpointing": checkpointing,
                    "train.micro_batch": 2 if checkpointing else 8 // number_of_ranks,
                },
            )
            for stage in stages
            for checkpointing in (False, True)
        }
        run_ranks(number_of_ranks, *runs.values())
        for (stage, checkpointing), config in runs.items():
            saved = load_file(Path(config.out) / "adapter" / "adapter_model.safetensors")
            assert saved.keys() == weights.keys()
            off = max((saved[name] - weights[name]).abs().max().item() for name in weights)
            lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
            loss_off = max(abs(a["loss/clean"] - b) for a, b in zip(lines, losses, strict=False))
            what = f"{number_of_ranks} ranks {optimizer:5} {stage:13} checkpointing {checkpointing}"
            print(f"{what}: dparam {off:.1e} dloss {loss_off:.1e}")
            worst = max(worst, off, loss_off)
    assert worst <= 1e-5
