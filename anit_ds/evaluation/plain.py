"""The plain way to ask a model: whole prompts padded to one length, `model.generate`, whole sequences scored.

It works with every causal LM, and it is what the cached way is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from anit_ds.adversarial.head import AnswerHead
from anit_ds.evaluation.questions import Ending, Interrupted, Question, Reply, evaluating, in_order, stops_of
from anit_ds.ranks import distributed


@torch.no_grad()
def ask(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    one_line: bool = False,
    batch_size: int = 16,
    progress: str | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """As `decode.ask`."""
    order = sorted(range(len(questions)), key=lambda i: (-len(questions[i].prompt), i))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rank, ranks = distributed.rank(), distributed.world_size()
    rounds = -(-len(batches) // ranks)
    most = max((len(question.answers) for question in questions), default=0)
    mine: dict[int, Reply] = {}
    ending = Ending(model, tokenizer, one_line=one_line)
    with suppress(Interrupted), evaluating(model):
        for turn in tqdm(range(rounds), desc=progress, disable=progress is None or rank != 0, leave=False):
            at = turn * ranks + rank
            # A rank without a batch left repeats one: partitioned weights need every rank in every forward.
            asked = [questions[i] for i in batches[at if at < len(batches) else 0]]
            replies = [Reply() for _ in asked]
            if max_new_tokens:
                generated = _generate(model, tokenizer, [question.prompt for question in asked], max_new_tokens)
                for reply, tokens in zip(replies, generated, strict=True):
                    reply.tokens = ending.until(tokens)
                    reply.cut = not ending(reply.tokens)
            for number in range(most):
                # A question with fewer answers than another has one scored again, for the same reason.
                given = [(question.answers or [[0]])[min(number, len(question.answers) - 1)] for question in asked]
                scores = _log_probabilities(model, [question.prompt for question in asked], given)
                for reply, question, score in zip(replies, asked, scores, strict=True):
                    reply.log_probabilities += [score] if number < len(question.answers) else []
            heartbeat()
            if at < len(batches):
                mine.update(zip(batches[at], replies, strict=True))
    return in_order(mine, len(questions))


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
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
        eos_token_id=stops_of(model, tokenizer),
        pad_token_id=pad,
        synced_gpus=distributed.in_step(model),
    )
    rows: list[list[int]] = generated[:, width:].tolist()  # padded behind what ended them
    return rows


def _log_probabilities(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
    """Of each answer given its prompt, from one pass over whole sequences with float32 logits."""
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, texts))
    device = next(model.parameters()).device
    # Padded behind: no token looks at what comes after it.
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
    attended = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device)
    places = [(row, at) for row, prompt in enumerate(prompts) for at in range(len(prompt) - 1, len(texts[row]) - 1)]
    rows, columns = torch.tensor(places, device=device).T
    head = AnswerHead(model)
    try:
        with head.only_at(rows, columns):
            logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits  # [A, V]
    finally:
        head.remove()
    chosen = logits.gather(1, ids[rows, columns + 1].unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
    sums: list[float] = torch.zeros(len(texts), device=device).index_add_(0, rows, chosen.float()).tolist()
    return sums
