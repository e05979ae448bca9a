"""Answers of a model on a split, scored: eval/NAME.json and eval/predictions-NAME.jsonl (docs/method.md section 6)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.noise import noisy_split, opposites_for
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.data.tasks import Parsed, score
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.evaluation.asking import Question, Reply, texts_of
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.likelihood import expected_calibration_error
from anit_ds.files import write_atomically, write_json
from anit_ds.ranks import distributed

# Tokens beyond the split's longest gold answer before a model is cut off: room for a wrong answer to be wrong in its
# way.
_MARGIN = 8
# More labels than this are not scored one by one: their passes would take longer than the answers.
_MOST_LABELS = 16


@dataclass(frozen=True)
class Evaluation:
    """A split's score and the answers it was computed from. `report` is what eval/NAME.json holds."""

    report: dict[str, Any]
    predictions: list[dict[str, Any]]

    @property
    def micro_f1(self) -> float:
        return float(self.report["micro_f1"])


class Evaluator:
    """Decodes and scores splits of a run's data with one tokenizer and prompt style."""

    def __init__(self, config: Config, data: RunData, tokenizer: Any) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        self.encoder = PromptEncoder(
            tokenizer, style=config.prompt.style, order=config.prompt.order, max_length=config.data.max_length
        )

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        noise: str | None = None,
        progress: bool = False,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Score `split` (dev or test) on raw instructions, or with every instruction bent by `noise`.

        Beside the score of greedy answers the report has `nll` and `nll_per_token`, the gold answers' mean negative
        log-likelihood, and for classification `ece`, the expected calibration error of the labels' probabilities.
        Several data sets: each is scored, and `micro_f1` is their mean. `heartbeat` is called after every
        batch. All ranks call this together.
        """
        parts = [self._one_set(model, s, split, noise, progress, heartbeat) for s in self.data.sets]
        if len(parts) == 1:
            return parts[0]
        mean = sum(p.micro_f1 for p in parts) / len(parts)
        by_set = {s.name: p.report for s, p in zip(self.data.sets, parts, strict=True)}
        report = {"micro_f1": mean, "n": sum(p.report["n"] for p in parts), "datasets": by_set}
        return Evaluation(report, [row for p in parts for row in p.predictions])

    def _one_set(
        self,
        model: nn.Module,
        data_set: DataSet,
        split: str,
        noise: str | None,
        progress: bool,
        heartbeat: Callable[[], None],
    ) -> Evaluation:
        started = time.perf_counter()
        samples = self.samples(data_set, split, noise)
        asked, gold = self.questions(data_set, samples)
        bar = f"{split} {data_set.name}" if progress else None
        replies = self._ask(model, samples, asked, progress=bar, heartbeat=heartbeat)
        answers = texts_of(replies, self.tokenizer)
        parsed = [data_set.parse(answer) for answer in answers]
        result = score([s.items for s in samples], parsed)
        report = {
            **result.to_dict(),
            **_likelihood(asked, replies, gold),
            "dataset": data_set.name,
            "split": split,
            "noise": noise or "none",
            "notes": data_set.noisy.manifest["notes"],
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Evaluation(report, [_row(*of) for of in zip(samples, answers, parsed, strict=True)])

    def samples(self, data_set: DataSet, split: str, noise: str | None) -> Sequence[Sample]:
        """The split's samples, their instructions raw or all of them bent by `noise`."""
        samples = data_set.split(split)
        if noise in (None, "none"):
            return samples
        settings = self.config.noise
        opposites = opposites_for(
            data_set.instructions,
            data_set.version,
            settings.model_copy(update={"kind": noise}),
        )
        return noisy_split(samples, noise, settings.omega, self.config.train.seed, opposites=opposites)

    def answer(
        self,
        model: nn.Module,
        samples: Sequence[Sample],
        *,
        progress: str | None = None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Greedy answers to samples, in their order."""
        asked = [Question(prompt) for prompt in self.encoder.encode_prompts(samples)]
        replies = self._ask(model, samples, asked, progress=progress, heartbeat=heartbeat)
        return texts_of(replies, self.tokenizer)

    def _ask(
        self,
        model: nn.Module,
        samples: Sequence[Sample],
        asked: Sequence[Question],
        *,
        progress: str | None,
        heartbeat: Callable[[], None],
    ) -> list[Reply]:
        return ask(
            model,
            self.tokenizer,
            asked,
            max_new_tokens=self.max_new_tokens(samples),
            batch_size=self.config.eval.batch_size,
            progress=progress,
            heartbeat=heartbeat,
        )

    def max_new_tokens(self, samples: Sequence[Sample]) -> int:
        """`eval.max_new_tokens`, or the longest gold answer's tokens and a margin."""
        longest = max((len(ids) for ids in self._ids([" " + s.answer for s in samples])), default=0)
        return self.config.eval.max_new_tokens or longest + _MARGIN

    def questions(self, data_set: DataSet, samples: Sequence[Sample]) -> tuple[list[Question], list[int]]:
        """Each sample's prompt with its gold answer, or with all labels where an answer is one of a few; and which of
        these answers is the gold one."""
        prompts = self.encoder.encode_prompts(samples)
        words = data_set.instructions.labels
        if data_set.task is CLASSIFICATION and len(words) <= _MOST_LABELS:
            labels, places = self._answers(list(words.values())), {label: at for at, label in enumerate(words)}
            return [Question(prompt, labels) for prompt in prompts], [places[s.items[0][0]] for s in samples]
        answers = self._answers([s.answer for s in samples])
        return [Question(p, [answer]) for p, answer in zip(prompts, answers, strict=True)], [0] * len(samples)

    def _answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Answers as training writes them, ended by EOS."""
        return self.encoder.encode_answers(texts) if texts else []

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return ids


def write_evaluation(folder: Path, name: str, evaluation: Evaluation) -> None:
    """eval/NAME.json and eval/predictions-NAME.jsonl, on rank 0."""
    if distributed.rank() != 0:
        return
    write_json(folder / f"{name}.json", evaluation.report)
    lines = [json.dumps(row, ensure_ascii=False) for row in evaluation.predictions]
    write_atomically(folder / f"predictions-{name}.jsonl", "".join(line + "\n" for line in lines))


def read_evaluation(folder: Path, name: str) -> Evaluation | None:
    """What `write_evaluation` wrote under this name, or None."""
    report, predictions = folder / f"{name}.json", folder / f"predictions-{name}.jsonl"
    if not (report.is_file() and predictions.is_file()):
        return None
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    return Evaluation(json.loads(report.read_text(encoding="utf-8")), rows)


def _likelihood(asked: Sequence[Question], replies: Sequence[Reply], gold: Sequence[int]) -> dict[str, float]:
    """The gold answers' mean negative log-likelihood, a sample and a token; with several labels to choose from, `ece`
    too."""
    losses = [-reply.log_probabilities[at] for reply, at in zip(replies, gold, strict=True)]
    tokens = sum(len(question.answers[at]) for question, at in zip(asked, gold, strict=True))
    found = {"nll": sum(losses) / max(1, len(losses)), "nll_per_token": sum(losses) / max(1, tokens)}
    if asked and len(asked[0].answers) > 1:
        scores = torch.tensor([reply.log_probabilities for reply in replies])
        found["ece"] = expected_calibration_error(scores, torch.tensor(gold))
    return found


def _row(sample: Sample, answer: str, parsed: Parsed) -> dict[str, Any]:
    return {
        "id": sample.id,
        "dataset": sample.dataset,
        "text": sample.text,
        "instruction": sample.instruction,
        "gold": sample.items,
        "predicted": parsed.items,
        "malformed": parsed.malformed,
        "answer": answer,
    }
