"""Answers on a split beside the gold ones: scores, likelihoods, labels and `None` by probability (docs/method.md,
section 6)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import nn

from anit_ds.data.examples import Item, Sample
from anit_ds.data.noise import NoSource, noisy_split
from anit_ds.data.rundata import DataSet
from anit_ds.data.tasks import Parsed, score
from anit_ds.evaluation.answerer import Answerer, Ask, none_probability, told_if_cut
from anit_ds.evaluation.labels import fitted_temperature, labels_report
from anit_ds.evaluation.none_threshold import chosen, fitted_threshold, nothing_report
from anit_ds.evaluation.questions import Question, Reply
from anit_ds.evaluation.report import Evaluation
from anit_ds.files import finite_or_null


class Evaluator(Answerer):
    """An answerer that knows the gold answers of a run's splits."""

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

        `constrained`: of the answers that are valid (grammar.py) the greedy one, where a task has a set of items. Then
        the report has `nothing` too: the score at its threshold in `none_thresholds` or, on dev, at the best one.

        Beside the score of greedy answers the report has `nll` and `nll_per_token`, the gold answers' mean negative
        log-likelihood, and for classification `labels`, what `labels_report` says, and its `ece`. `nonfinite` counts
        gold answers whose likelihood is NaN or infinite: then the first two are None; the others, where a label is.
        Several data sets: each is scored, `micro_f1` and `parse_failures` are their means, the two likelihoods their
        geometric mean (one of long answers weighs as much as one of short ones), and what was counted their sum.
        `heartbeat` is called after every batch. All ranks call this together.
        """
        parts = [self._one_set(model, s, split, noise, constrained, progress, heartbeat) for s in self.data.sets]
        if len(parts) == 1:
            return parts[0]
        mean = sum(p.micro_f1 for p in parts) / len(parts)
        by_set = {s.name: p.report for s, p in zip(self.data.sets, parts, strict=True)}
        counted = {key: sum(p.report[key] for p in parts) for key in ("n", "nonfinite")}
        unparsed = fmean(p.report["parse_failures"] for p in parts)
        likely = {key: _geometric_mean([p.report[key] for p in parts]) for key in ("nll", "nll_per_token")}
        report = {"micro_f1": mean, "parse_failures": unparsed, **counted, **likely, "datasets": by_set}
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
        self.encoder.cut.pop("", None)
        asked, gold = self.questions(data_set, samples)
        text_cut = len(self.encoder.cut[""])
        if constrained:
            asked = [self._constrained(q, data_set, sample) for q, sample in zip(asked, samples, strict=True)]
        bar = f"{split} {data_set.name}" if progress else None
        ask = partial(self._ask, model, data_set, progress=bar, heartbeat=heartbeat)
        replies = ask(asked)
        answers = self._texts(asked, replies)
        parsed = [data_set.parse(answer) for answer in answers]
        result = score([s.items for s in samples], parsed)
        likelihood = _likelihood(asked, replies, gold)
        fits = split == "dev" and noise in (None, "none")
        if any(question.grammar for question in asked):
            beside, told = self._by_none(data_set, [s.items for s in samples], asked, replies, parsed, ask, fits)
        else:
            beside, told = self._by_label(data_set, replies, gold, fits)
        report = {
            **result.to_dict(),
            "cut": sum(reply.cut for reply in replies),
            "text_cut": text_cut,
            **likelihood,
            **beside,
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
        return Evaluation(report, [row | cut | more for row, cut, more in zip(rows, also, told, strict=True)])

    def _by_none(
        self,
        data_set: DataSet,
        gold: Sequence[Sequence[Item]],
        asked: Sequence[Question],
        replies: Sequence[Reply],
        parsed: Sequence[Parsed],
        ask: Ask,
        fits: bool,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What a report says of `None` chosen by its probability, and what each row does. `fits`: it has the threshold
        that is best for these texts too, which takes an answer with an item to each; where the caller has none, it is
        that one."""
        probabilities, given = [none_probability(reply) for reply in replies], self.none_thresholds.get(data_set.name)
        rows: list[dict[str, Any]] = [{"none": p} for p in probabilities]
        if given is None and not fits:
            return {"nothing": None}, rows
        best_item = list(parsed)  # of each text; to fit a threshold every text needs one
        below = math.inf if given is None or fits else given
        for place, (answer, _) in self._somethings(asked, replies, parsed, ask, below=below).items():
            best_item[place] = data_set.parse(answer)
        about: dict[str, Any] = {"fitted": given is None}
        if fits:
            about["best"] = fitted_threshold(probabilities, best_item, gold)
        threshold = about.get("best") if given is None else given
        if threshold is None:
            return {"nothing": {"threshold": None, **about}}, rows
        said = [chosen(p, threshold, item) for p, item in zip(probabilities, best_item, strict=True)]
        rows = [row | {"at_threshold": answer.items} for row, answer in zip(rows, said, strict=True)]
        return {"nothing": {**nothing_report(said, gold, threshold), **about}}, rows

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

    def questions(self, data_set: DataSet, samples: Sequence[Sample]) -> tuple[list[Question], list[int]]:
        """Each sample's prompt with its gold answer, or with all labels where an answer is one of a few; and which of
        these answers is the gold one."""
        prompts = self.encoder.encode_prompts(samples)
        labels = self.labels(data_set)
        if labels and (labels.are_few or labels.thresholds):
            words = self._answers(list(data_set.instructions.labels.values()))
            places = {label: at for at, label in enumerate(labels.names)}
            return [Question(prompt, words) for prompt in prompts], [places[s.items[0][0]] for s in samples]
        answers = self._answers([s.answer for s in samples])
        return [Question(p, [answer]) for p, answer in zip(prompts, answers, strict=True)], [0] * len(samples)


def _likelihood(asked: Sequence[Question], replies: Sequence[Reply], gold: Sequence[int]) -> dict[str, Any]:
    """The gold answers' mean negative log-likelihood, a sample and a token. None where it is not finite."""
    losses = [-reply.log_probabilities[at] for reply, at in zip(replies, gold, strict=True)]
    tokens = sum(len(question.answers[at]) for question, at in zip(asked, gold, strict=True))
    found = {"nll": sum(losses) / max(1, len(losses)), "nll_per_token": sum(losses) / max(1, tokens)}
    nonfinite = sum(not math.isfinite(loss) for loss in losses)
    return {**finite_or_null(found), "nonfinite": nonfinite}


def _geometric_mean(losses: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    logs = [math.log(max(loss, 1e-12)) for loss in losses if loss is not None]
    return math.exp(fmean(logs)) if len(logs) == len(losses) else None


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
