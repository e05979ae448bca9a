"""Answers of a run's model to texts, greedy, valid by construction or by the probability of a label or of `None`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from anit_ds.config import Config
from anit_ds.data.examples import Sample, sample_key
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.data.tasks import NONE, Parsed
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.data.tasks.grammar import grammar_for
from anit_ds.data.tasks.multilabel import MULTILABEL
from anit_ds.evaluation import decode
from anit_ds.evaluation.constrained import item_scores
from anit_ds.evaluation.labels import Labels
from anit_ds.evaluation.questions import Question, Reply, texts_of

# What an answer may be longer than the longest one of training before it is cut off: so many tokens, or this share of
# it where that is more. Room for a wrong answer to be wrong in its way, and for a right one that is longer
# than any of training.
_MARGIN, _SHARE = 8, 0.25
_COUNTED_AT_ONCE = 10_000
_DIGITS = 6

Ask = Callable[[Sequence[Question]], list[Reply]]


class Answerer:
    """Asks a run's model about texts, with one tokenizer and prompt style.

    `answer_limits`: of each data set the tokens that an answer may have; counted where they are not given. For labels
    by probability (labels.py) `temperatures` are those found on dev, by data set, and `thresholds` the caller's;
    `none_thresholds` are for constrained answers (none_threshold.py), by data set.
    """

    temperatures: Mapping[str, float]
    thresholds: Mapping[str, float]
    none_thresholds: Mapping[str, float]

    def __init__(
        self, config: Config, data: RunData, tokenizer: Any, answer_limits: Mapping[str, int] | None = None
    ) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        self._limits = answer_limits
        self.temperatures, self.thresholds, self.none_thresholds = {}, {}, {}
        self.encoder = PromptEncoder.of(config, tokenizer)

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
        `malformed` and `cut` where it is, `text_cut` where the text was too long for `data.max_length`; with
        `probabilities` the `label` chosen by them too (by default where labels are few); with `constrained` the
        `scores` of the items, of which those below `least` are left out, and how probable `none` is: with one of
        `none_thresholds` it is the answer from there on. Where a text has several labels, the items as `labels`
        too."""
        labels = self.labels(data_set)
        if labels and not (labels.are_few if probabilities is None else probabilities):
            labels = None
        given = self._answers(list(data_set.instructions.labels.values())) if labels else ()
        self.encoder.cut.pop("", None)
        asked = [Question(prompt, given) for prompt in self.encoder.encode_prompts(samples)]
        shortened = self.encoder.cut[""]
        if constrained:
            asked = [self._constrained(q, data_set, sample) for q, sample in zip(asked, samples, strict=True)]
        ask = partial(self._ask, model, data_set)
        replies = ask(asked)
        answered = list(zip(self._texts(asked, replies), replies, strict=True))
        if constrained and (threshold := self.none_thresholds.get(data_set.name)):
            answered = self._at_threshold(data_set, asked, answered, ask, threshold)
        rows = []
        for sample, question, first, (answer, reply) in zip(samples, asked, replies, answered, strict=True):
            parsed = data_set.parse(answer)
            row: dict[str, Any] = {"answer": answer, "items": parsed.items}
            if question.grammar:
                row["none"] = none_probability(first)
                scored = list(zip(parsed.items, item_scores(reply, self.tokenizer), strict=False))
                kept = [(item, round(score, _DIGITS)) for item, score in scored if not score < least]  # NaN stays
                row |= {"items": [item for item, _ in kept], "scores": [score for _, score in kept]}
            if data_set.task is MULTILABEL:
                row["labels"] = [item[0] for item in row["items"]]
            row |= ({"malformed": parsed.malformed} if parsed.malformed else {}) | told_if_cut(reply)
            if sample_key(sample.id) in shortened:
                row["text_cut"] = True
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
        return decode.ask(
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

    def _constrained(self, question: Question, data_set: DataSet, sample: Sample) -> Question:
        """The question of a valid answer, and last of how probable `None` is; as it was where an answer is a label."""
        grammar = grammar_for(data_set.task, sample.text, data_set.instructions.labels)
        return replace(question, grammar=grammar, answers=[*question.answers, *self._none]) if grammar else question

    @cached_property
    def _none(self) -> list[list[int]]:
        return self._answers([NONE])

    def _at_threshold(
        self,
        data_set: DataSet,
        asked: Sequence[Question],
        answered: Sequence[tuple[str, Reply]],
        ask: Ask,
        threshold: float,
    ) -> list[tuple[str, Reply]]:
        """Answers and replies with `None` where it is as probable as the threshold, and only there, but where no
        probability is finite, which leaves the answer."""
        replies, parsed = [reply for _, reply in answered], [data_set.parse(answer) for answer, _ in answered]
        found = dict(enumerate(answered)) | self._somethings(asked, replies, parsed, ask, below=threshold)
        for place, (question, reply) in enumerate(zip(asked, replies, strict=True)):
            if question.grammar and (likely := none_probability(reply)) is not None and likely >= threshold:
                found[place] = NONE, Reply()
        return [found[place] for place in range(len(answered))]

    def _somethings(
        self, asked: Sequence[Question], replies: Sequence[Reply], parsed: Sequence[Parsed], ask: Ask, *, below: float
    ) -> dict[int, tuple[str, Reply]]:
        """The best answers with an item, by the text's place: of those that are answered without one though `None` is
        less probable than `below`."""
        answered = zip(asked, replies, parsed, strict=True)
        again = {
            place: Question(question.prompt, (), question.grammar.without_none())
            for place, (question, reply, said) in enumerate(answered)
            if question.grammar and not said.items and (p := none_probability(reply)) is not None and p < below
        }
        if not again:
            return {}
        others = ask(list(again.values()))
        texts = self._texts(list(again.values()), others)
        return {place: (text, reply) for place, text, reply in zip(again, texts, others, strict=True)}

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

    def _answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Answers as training writes them, ended by EOS."""
        return self.encoder.encode_answers(texts) if texts else []


def told_if_cut(reply: Reply) -> dict[str, bool]:
    """What an answer's row says more where the answer was cut off at its limit."""
    return {"cut": True} if reply.cut else {}


def none_probability(reply: Reply) -> float | None:
    """How probable `None` is, where it is asked for: last of the given answers. None where that is not finite."""
    probability = math.exp(reply.log_probabilities[-1])
    return probability if math.isfinite(probability) else None
