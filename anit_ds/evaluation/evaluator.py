"""Answers of a model on a split, greedy and by label, and their scores (docs/method.md section 6)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.noise import NoSource, noisy_split
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.data.tasks import Parsed, score
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.data.tasks.grammar import Grammar, grammar_for
from anit_ds.data.tasks.multilabel import MULTILABEL
from anit_ds.evaluation.asking import Question, Reply, texts_of
from anit_ds.evaluation.constrained import item_scores
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.labels import Labels, fitted_temperature, labels_report
from anit_ds.evaluation.report import Evaluation
from anit_ds.files import finite_or_null

# What an answer may be longer than the longest one of training before it is cut off: so many tokens, or this share of
# it where that is more. Room for a wrong answer to be wrong in its way, and for a right one that training had no like
# of.
_MARGIN, _SHARE = 8, 0.25
_COUNTED_AT_ONCE = 10_000
# More labels than this are not scored one by one: their passes would take longer than the answers.
_MOST_LABELS = 16


class Evaluator:
    """Decodes and scores splits of a run's data with one tokenizer and prompt style.

    `answer_limits`: of each data set the tokens that an answer may have; counted where they are not given. For labels
    by probability (labels.py) `temperatures` are those found on dev, by data set, and `thresholds` the caller's.
    """

    temperatures: Mapping[str, float]
    thresholds: Mapping[str, float]

    def __init__(
        self, config: Config, data: RunData, tokenizer: Any, answer_limits: Mapping[str, int] | None = None
    ) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        self._limits = answer_limits
        self.temperatures, self.thresholds = {}, {}
        self.encoder = PromptEncoder.of(config, tokenizer)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        noise: str | None = None,
        constrained: bool = False,
        progress: bool = False,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Score `split` (dev or test) on raw instructions, or with every instruction bent by `noise`.

        `constrained`: of the answers that are valid (grammar.py) the greedy one, where a task has a set of items.

        Beside the score of greedy answers the report has `nll` and `nll_per_token`, the gold answers' mean negative
        log-likelihood, and for classification `labels`, what `labels_report` says, and its `ece`. `nonfinite` counts
        gold answers whose likelihood is NaN or infinite; then these four are None.
        Several data sets: each is scored, and `micro_f1` is their mean. `heartbeat` is called after every
        batch. All ranks call this together.
        """
        parts = [self._one_set(model, s, split, noise, constrained, progress, heartbeat) for s in self.data.sets]
        if len(parts) == 1:
            return parts[0]
        mean = sum(p.micro_f1 for p in parts) / len(parts)
        by_set = {s.name: p.report for s, p in zip(self.data.sets, parts, strict=True)}
        n, nonfinite = (sum(p.report[key] for p in parts) for key in ("n", "nonfinite"))
        report = {"micro_f1": mean, "n": n, "nonfinite": nonfinite, "datasets": by_set}
        return Evaluation(report, [row for p in parts for row in p.predictions])

    def _one_set(
        self,
        model: nn.Module,
        data_set: DataSet,
        split: str,
        noise: str | None,
        constrained: bool,
        progress: bool,
        heartbeat: Callable[[], None],
    ) -> Evaluation:
        started = time.perf_counter()
        samples = self.samples(data_set, split, noise)
        asked, gold = self.questions(data_set, samples)
        if constrained:
            asked = [replace(q, grammar=grammar_of(data_set, s)) for q, s in zip(asked, samples, strict=True)]
        bar = f"{split} {data_set.name}" if progress else None
        replies = self._ask(model, data_set, asked, progress=bar, heartbeat=heartbeat)
        answers = self._texts(asked, replies)
        parsed = [data_set.parse(answer) for answer in answers]
        result = score([s.items for s in samples], parsed)
        likelihood = _likelihood(asked, replies, gold)
        by_label, told = self._by_label(data_set, replies, gold, split == "dev" and noise in (None, "none"))
        report = {
            **result.to_dict(),
            "cut": sum(reply.cut for reply in replies),
            **likelihood,
            **by_label,
            "dataset": data_set.name,
            "task": data_set.task.name,
            "split": split,
            "noise": noise or "none",
            "constrained": constrained,
            "notes": [*data_set.notes(split), *_warnings(likelihood["nonfinite"], len(samples))],
            "seconds": round(time.perf_counter() - started, 3),
        }
        rows = [_row(*each) for each in zip(samples, answers, parsed, strict=True)]
        also = [told_if_cut(reply) for reply in replies]
        return Evaluation(report, [row | cut | label for row, cut, label in zip(rows, also, told, strict=True)])

    def _texts(self, asked: Sequence[Question], replies: Sequence[Reply]) -> list[str]:
        """The answers in words; of a constrained one that was cut off the whole items."""
        texts = texts_of(replies, self.tokenizer)
        return [q.grammar.whole_part(text) if q.grammar else text for q, text in zip(asked, texts, strict=True)]

    def labels(self, data_set: DataSet) -> Labels | None:
        """How this data set's labels are chosen by probability; None where its answers are no labels."""
        if data_set.task is not CLASSIFICATION:
            return None
        names = list(data_set.instructions.labels)
        return Labels(names, self.temperatures.get(data_set.name), self.thresholds)

    def _by_label(
        self, data_set: DataSet, replies: Sequence[Reply], gold: Sequence[int], fits: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What a report says of the labels chosen by probability, and what each row does; nothing where labels were not
        scored, or a score is not finite. `fits`: the temperature is this split's own."""
        labels = self.labels(data_set)
        scores = torch.tensor([reply.log_probabilities for reply in replies])
        if labels is None or not len(scores) or scores.shape[1] != len(labels.names):
            return {}, [{} for _ in replies]
        if not scores.isfinite().all():
            return {"ece": None, "labels": None}, [{} for _ in replies]
        if fits:
            labels = replace(labels, temperature=fitted_temperature(scores, torch.tensor(gold)))
        report = labels_report(scores, torch.tensor(gold), labels)
        return {"ece": report["ece"], "labels": report}, [labels.told(p) for p in labels.probabilities(scores).tolist()]

    def samples(self, data_set: DataSet, split: str, noise: str | None) -> Sequence[Sample]:
        """The split's samples, their instructions raw or all of them bent by `noise`."""
        samples = data_set.split(split)
        if noise in (None, "none"):
            return samples
        settings = self.config.noise
        opposites = data_set.opposites(settings) if noise == "opposite" else ()
        omega = self.config.omega_at_evaluation
        if not omega and noise != "opposite":
            raise NoSource(f"{noise} at noise.omega 0 changes no instruction, and the run has no eval.omega")
        return noisy_split(samples, noise, omega, self.config.train.seed, opposites=opposites)

    def answer(
        self,
        model: nn.Module,
        data_set: DataSet,
        samples: Sequence[Sample],
        *,
        probabilities: bool | None = None,
        constrained: bool = False,
        least: float = 0.0,
    ) -> list[dict[str, Any]]:
        """What a row says of each sample of one data set, in their order: the greedy `answer` and its `items`,
        `malformed` and `cut` where it is; with `probabilities` the `label` chosen by them too (by default where labels
        are few); with `constrained` the `scores` of the items, of which those below `least` are left out. Where a text
        has several labels, the items as `labels` too."""
        labels = self.labels(data_set)
        if labels and not (len(labels.names) <= _MOST_LABELS if probabilities is None else probabilities):
            labels = None
        given = self._answers(list(data_set.instructions.labels.values())) if labels else ()
        asked = [
            Question(prompt, given, grammar_of(data_set, sample) if constrained else None)
            for prompt, sample in zip(self.encoder.encode_prompts(samples), samples, strict=True)
        ]
        replies = self._ask(model, data_set, asked)
        rows = []
        for question, answer, reply in zip(asked, self._texts(asked, replies), replies, strict=True):
            parsed = data_set.parse(answer)
            row: dict[str, Any] = {"answer": answer, "items": parsed.items}
            if question.grammar:
                scored = list(zip(parsed.items, item_scores(reply, self.tokenizer), strict=False))
                kept = [(item, round(score, 6)) for item, score in scored if score >= least]
                row |= {"items": [item for item, _ in kept], "scores": [score for _, score in kept]}
            if data_set.task is MULTILABEL:
                row["labels"] = [item[0] for item in row["items"]]
            row |= ({"malformed": parsed.malformed} if parsed.malformed else {}) | told_if_cut(reply)
            if labels:
                scores = torch.tensor([reply.log_probabilities])
                finite = bool(scores.isfinite().all())
                row |= labels.told(labels.probabilities(scores)[0].tolist()) if finite else {"label": None}
            rows.append(row)
        return rows

    def _ask(
        self,
        model: nn.Module,
        data_set: DataSet,
        asked: Sequence[Question],
        *,
        progress: str | None = None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> list[Reply]:
        return ask(
            model,
            self.tokenizer,
            asked,
            max_new_tokens=self.answer_limits[data_set.name],
            one_line=True,
            batch_size=self.config.eval.batch_size,
            progress=progress,
            heartbeat=heartbeat,
        )

    @property
    def answer_limits(self) -> Mapping[str, int]:
        """Of each data set the tokens that an answer may have: `eval.max_new_tokens`, or what the longest answer of
        training has and a margin."""
        if self._limits is None:
            given = self.config.eval.max_new_tokens
            self._limits = {s.name: given or self._room_for(s.split("train")) for s in self.data.sets}
        return self._limits

    def _room_for(self, samples: Sequence[Sample]) -> int:
        longest = 0
        for start in range(0, len(samples), _COUNTED_AT_ONCE):
            answers = {sample.answer for sample in samples[start : start + _COUNTED_AT_ONCE]}
            longest = max(longest, *(len(ids) - 1 for ids in self._answers(list(answers))))  # without EOS
        return longest + max(_MARGIN, math.ceil(_SHARE * longest))

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


def grammar_of(data_set: DataSet, sample: Sample) -> Grammar | None:
    """The valid answers about a sample's text; None where the answer is a label, which is chosen by its probability."""
    return grammar_for(data_set.task, sample.text, data_set.instructions.labels)


def told_if_cut(reply: Reply) -> dict[str, bool]:
    """What an answer's row says more where the answer was cut off at its limit."""
    return {"cut": True} if reply.cut else {}


def _likelihood(asked: Sequence[Question], replies: Sequence[Reply], gold: Sequence[int]) -> dict[str, Any]:
    """The gold answers' mean negative log-likelihood, a sample and a token. None where it is not finite."""
    losses = [-reply.log_probabilities[at] for reply, at in zip(replies, gold, strict=True)]
    tokens = sum(len(question.answers[at]) for question, at in zip(asked, gold, strict=True))
    found = {"nll": sum(losses) / max(1, len(losses)), "nll_per_token": sum(losses) / max(1, tokens)}
    nonfinite = sum(not math.isfinite(loss) for loss in losses)
    return {**finite_or_null(found), "nonfinite": nonfinite}


def _warnings(nonfinite: int, n: int) -> list[str]:
    return [f"nll: the model gives {nonfinite} of {n} gold answers no finite probability"] if nonfinite else []


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
