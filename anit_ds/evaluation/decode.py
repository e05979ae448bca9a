"""Greedy answers from a causal LM: batched, stopped at EOS, spread over ranks.

Batches are cut from the whole list before they are dealt out, so a batch, and with it every answer, is the same on
one rank and on eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from anit_ds.ranks import distributed


@torch.no_grad()
def greedy_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    progress: str | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> list[str]:
    """The answer to each prompt (token ids), in the prompts' order, on every rank.

    Stops at EOS or after max_new_tokens. Dropout is off; the model's mode is restored. Under ZeRO-3 all ranks must call
    this together. `progress` names a bar on rank 0; `heartbeat` is
    called after every batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rank, ranks = distributed.rank(), distributed.world_size()
    rounds = -(-len(batches) // ranks)
    mine: dict[int, str] = {}
    was_training = model.training
    model.eval()
    for turn in tqdm(range(rounds), desc=progress, disable=progress is None or rank != 0, leave=False):
        at = turn * ranks + rank
        # A rank without a batch left repeats one: partitioned weights need every rank in every forward.
        batch = batches[at if at < len(batches) else 0]
        answers = _generate(model, tokenizer, [prompts[i] for i in batch], max_new_tokens)
        heartbeat()
        if at < len(batches):
            mine.update(zip(batch, answers, strict=True))
    model.train(was_training)
    everyone: dict[int, str] = {}
    for part in distributed.all_gather_objects(mine):
        everyone.update(part)
    return [everyone[i] for i in range(len(prompts))]


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    generated = model.generate(
        input_ids=ids,
        attention_mask=attended,
        do_sample=False,
        num_beams=1,
        # A checkpoint's own sampling settings would only raise warnings about what greedy decoding ignores.
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        eos_token_id=_stops(model, tokenizer),
        pad_token_id=pad,
        synced_gpus=distributed.world_size() > 1 and hasattr(next(model.parameters()), "ds_id"),
    )
    texts: list[str] = tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS, which training writes, and the checkpoint's own."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *own})
