"""A finished run, loaded and asked: its scores on a split, its answers to new texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from anit_ds.data.examples import Sample
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.errors import InputError
from anit_ds.evaluation.robustness import beside_raw
from anit_ds.evaluation.score import Evaluation, Evaluator, read_evaluation, write_evaluation
from anit_ds.modeling import load_adapter, load_model, load_tokenizer, resolve_dtype
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder


class FinishedRun:
    """A run's configuration, data and best adapter (with `base` the untouched model); the ranks share the work.

    `dtype` loads the weights in another one than the run's. Raises InputError: no run.
    """

    def __init__(self, path: str | Path, *, base: bool = False, dtype: str | None = None) -> None:
        distributed.init()
        self.folder = RunFolder(path)
        self.config = self.folder.load_config()
        self.data = distributed.main_first(lambda: RunData.load(self.config, self.folder.data))
        self.base, self.dtype = base, dtype

    @cached_property
    def model(self) -> nn.Module:
        """On this rank's device, in evaluation mode. Raises InputError: no adapter, no model."""
        device = distributed.device()
        model = load_model(self.config.model, resolve_dtype(self.dtype or self.config.model.dtype, device.type))
        if not self.base:
            model = load_adapter(model, self.folder.path)
        return model.to(device).eval()

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.config, self.data, load_tokenizer(self.config.model))

    def evaluate(self, split: str, noises: Sequence[str] = ("none",)) -> dict[str, Evaluation]:
        """Score a split (dev or test) under each noise and write eval/NAME.json; NAME -> evaluation.

        Where the raw answers are at hand (from this call or an earlier one), a noise's report has its gap and
        consistency too.
        """
        made: dict[str, Evaluation] = {}
        for noise in noises:
            evaluation = self.evaluator.evaluate(self.model, split, noise=noise, progress=True)
            if noise != "none":
                raw = made.get(self._name(split)) or read_evaluation(self.folder.eval, self._name(split))
                if raw is not None:
                    evaluation = beside_raw(evaluation, raw)
            made[self._name(split, noise)] = evaluation
            write_evaluation(self.folder.eval, self._name(split, noise), evaluation)
        return made

    def _name(self, split: str, noise: str = "none") -> str:
        return "-".join(part for part in ("base" if self.base else "", split, noise if noise != "none" else "") if part)

    def answer(self, texts: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Each object (where it stands -> it, with a `text`) again, with `answer` and `items` (raw labels).

        Raises InputError for one that does not say which data set of a mixture it belongs to.
        """
        sets = [self._set_of(row, where) for where, row in texts.items()]
        rows = list(texts.values())
        samples = [_as_sample(row, of, number) for number, (row, of) in enumerate(zip(rows, sets, strict=True), 1)]
        answers = self.evaluator.answer(self.model, samples, progress="predict")
        return [
            {**row, "answer": answer, "items": of.parse(answer).items}
            for row, of, answer in zip(rows, sets, answers, strict=True)
        ]

    def _set_of(self, row: Mapping[str, Any], where: str) -> DataSet:
        if len(self.data.sets) == 1:
            return self.data.sets[0]
        names = [s.name for s in self.data.sets]
        if row.get("dataset") not in names:
            raise InputError(f'{where}: the run is a mixture, so each line needs "dataset": one of {", ".join(names)}')
        return self.data[row["dataset"]]


def _as_sample(row: Mapping[str, Any], of: DataSet, number: int) -> Sample:
    instruction = of.instructions.first(of.version)
    return Sample(
        id=str(row.get("id", number)),
        dataset=of.name,
        text=row["text"],
        items=(),
        instruction=instruction,
        raw_instruction=instruction,
        noise="none",
        question=of.instructions.question,
        format=of.instructions.format,
        options=of.instructions.options,
        answer="",
        distance=0,
        distortion=0.0,
    )
