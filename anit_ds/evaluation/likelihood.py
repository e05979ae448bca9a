"""How probable a model finds given answers: the loss of gold answers, scores of labels, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anit_ds.evaluation.asking import Question
from anit_ds.evaluation.decode import ask


def answer_losses(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], **how: Any
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each prompt's answer, summed over its tokens [N] float32, and their number [N] int64.

    Answers are token ids and end with EOS. `how` is given to `decode.ask`: batch_size, progress, heartbeat.
    """
    questions = [Question(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    replies = ask(model, tokenizer, questions, max_new_tokens=0, **how)
    losses = torch.tensor([-reply.log_probabilities[0] for reply in replies], dtype=torch.float32)
    return losses, torch.tensor([len(answer) for answer in answers], dtype=torch.int64)


def label_scores(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], labels: Sequence[list[int]], **how: Any
) -> Tensor:
    """The log-probability of each label after each prompt [N, labels] float32.

    Labels are token ids and end with EOS; without it a label that begins another would gather the other's mass too.
    `how` is given to `decode.ask`.
    """
    replies = ask(model, tokenizer, [Question(prompt, labels) for prompt in prompts], max_new_tokens=0, **how)
    return torch.tensor([reply.log_probabilities for reply in replies], dtype=torch.float32).view(-1, len(labels))


def expected_calibration_error(scores: Tensor, gold: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, in [0, 1]: the mean of |accuracy - confidence| over bins, by their size.

    scores [N, labels] are log-probabilities, gold [N] the right label's place. The confidence is the largest
    probability after normalising over the labels, the prediction the label that has it; the bins are of equal width
    (Guo et al., 2017, equation 3). 0 where there is nothing to count.
    """
    confidence, predicted = scores.double().softmax(1).max(1)
    right = (predicted == gold).double()
    # (0, 1/15], (1/15, 2/15], ...
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    off = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(off.abs().sum() / max(1, len(scores)))
