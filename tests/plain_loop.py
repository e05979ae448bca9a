"""A training run in plain PyTorch on one process: what every rank, ZeRO stage and schedule must agree with.

Without DeepSpeed, without our hooks and without our answer head: `inputs_embeds`, full logits, whole global batches,
and a formula of tests/formulas.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from formulas import Step
from torch import Tensor

from anit_ds.config import Config
from anit_ds.data.examples import sample_key
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.modeling import load_model, load_tokenizer, make_trainable
from anit_ds.training.batching import collate, plan_epoch
from anit_ds.training.engine import learning_rate


def plain_loop(config: Config, formula: Callable[[Step], Tensor]) -> tuple[dict[str, Tensor], list[float]]:
    """(trained weights after the last step, clean loss before each step) of the run of `config`, in float32."""
    train, method = config.train, config.method
    model = make_trainable(load_model(config.model, torch.float32), config)
    embedding = model.get_input_embeddings()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if train.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=train.lr)
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=train.lr, betas=train.adam_betas, eps=train.adam_eps, weight_decay=train.weight_decay
        )
    data = RunData.load(config, None)
    encoder = PromptEncoder(load_tokenizer(config.model), order=config.prompt.order)
    drawn = data.train_samples(seed=train.seed, epoch=0)
    encoded = [encoder.encode(views) for views in drawn]
    lengths = [sum(len(view) for view in views) for views in encoded]
    of_none = {sample_key(view.id) for views in drawn for view in views if view.answer == "None"}

    def loss_of(view: Encoded) -> float:
        ids = torch.tensor([[*view.prompt, *view.answer]])
        labels = torch.tensor([[-100] * len(view.prompt) + [*view.answer]])
        return model(ids, labels=labels).loss.item()

    plans = [plan_epoch(lengths, train.global_batch, seed=train.seed, epoch=e) for e in range(int(train.epochs))]
    minibatches = [indices for plan in plans for indices in plan]
    steps = [m for m in minibatches for _ in range(method.replays)]
    steps = steps[: train.max_steps or len(steps) // method.epochs_divided_by]
    losses = []
    for step, indices in enumerate(steps):
        if config.noise.train_on == "worst":
            samples = [max(encoded[i], key=loss_of) for i in indices]
        else:
            samples = [view for i in indices for view in encoded[i]]
        beta = [data.betas[s.dataset] for s in samples]
        batch = collate(samples, pad_id=0, tokens=method.tokens, beta=beta, step=step, denominator=1.0)
        if not method.attack_none:
            batch = replace(batch, scope=batch.scope & torch.tensor([[s.key not in of_none] for s in samples]))
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.target_rows, batch.target_positions + 1] = batch.target_ids

        def mean_loss(inputs: Tensor, batch=batch, labels=labels) -> Tensor:
            logits = model(inputs_embeds=inputs, attention_mask=batch.attended.long()).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

        def log_probs(inputs: Tensor, batch=batch) -> Tensor:
            logits = model(inputs_embeds=inputs, attention_mask=batch.attended.long()).logits
            return logits[batch.target_rows, batch.target_positions].log_softmax(-1)

        e = embedding(batch.input_ids)
        losses.append(mean_loss(e).item())
        formula(Step(batch, e, mean_loss, method, seed=train.seed, log_probs=log_probs)).backward()
        if train.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, len(steps))
        optimizer.step()
        optimizer.zero_grad()
    moved = 1.0 if config.lora is None else max(
        p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n
    )  # fmt: skip
    assert moved > 1e-3, "lora_B starts at 0: a run that does not move it would agree with anything"
    return {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}, losses
