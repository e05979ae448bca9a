"""What a run is judged by: dev picks its adapter, and the test split is read once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from anit_ds.data.noise import NoSource
from anit_ds.evaluation import Evaluation, Evaluator, beside_raw, write_evaluation
from anit_ds.evaluation.labels import temperatures_of
from anit_ds.evaluation.report import AnsweredBy
from anit_ds.identity import configuration_hash
from anit_ds.modeling import adapter_off
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder
from anit_ds.sealed import Damaged, read_sealed

logger = logging.getLogger(__name__)


@dataclass
class Best:
    """The best adapter so far, by micro-F1 on dev."""

    micro_f1: float = -1.0
    step: int = 0
    since: int = 0
    """Evaluations on dev after it."""


@dataclass
class Scores:
    """The evaluations of a run; all ranks call its methods together. `beat` is called after every batch of answers
    and may raise Interrupted, which they pass on. `dtype` is the model's."""

    evaluator: Evaluator
    run: RunFolder
    beat: Callable[[], None]
    dtype: str
    best: Best = field(default_factory=Best)

    def untouched(self, model: nn.Module) -> float:
        """The base model's micro-F1 on test."""
        with adapter_off(model):
            evaluation = self.evaluator.evaluate(model, "test", progress=True, heartbeat=self.beat)
        self._write("before", evaluation, step=0)
        return evaluation.micro_f1

    def dev(self, model: nn.Module, step: int, *, usable: bool, in_turn: bool) -> tuple[Evaluation, bool]:
        """(the evaluation on dev, whether it is the best so far). One that is not `in_turn` costs no patience.

        Never the best is a model that is not `usable`, and one that gives no gold answer a finite probability.
        """
        evaluation = self.evaluator.evaluate(model, "dev", progress=sys.stderr.isatty(), heartbeat=self.beat)
        better = usable and not evaluation.broken and evaluation.micro_f1 > self.best.micro_f1
        if better:
            self.best = Best(evaluation.micro_f1, step)
            self._write("dev", evaluation, step)
        elif in_turn:
            self.best.since += 1
        return evaluation, better

    def test(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """(report on the test split, what each noise of `eval.noises` does to it)."""
        self.evaluator.temperatures = temperatures_of(self.dev_of_best() or self.dev_again(model))
        raw = self.evaluator.evaluate(model, "test", progress=True, heartbeat=self.beat)
        self._write("test", raw, self.best.step)
        robustness: dict[str, dict[str, float]] = {}
        for noise in self.evaluator.config.eval.noises:
            try:
                bent = self.evaluator.evaluate(model, "test", noise=noise, progress=True, heartbeat=self.beat)
            except NoSource as error:
                logger.warning("test-%s is not scored: %s", noise, error)
                continue
            bent = beside_raw(bent, raw)
            self._write(f"test-{noise}", bent, self.best.step)
            robustness[noise] = {key: bent.report[key] for key in ("micro_f1", "gap", "consistency")}
        return raw.report, robustness

    def dev_of_best(self) -> dict[str, Any] | None:
        """The report on dev of the best adapter, as eval/ has it. None where it is lost, or damaged, or of one that was
        taken back: a kill comes between the evaluation and the checkpoint that knows of it."""

        def read() -> dict[str, Any] | None:
            try:
                report = read_sealed(self.run.eval / "dev.json")
            except Damaged as error:
                logger.warning("%s; dev is scored again", error)
                return None
            same = AnsweredBy.of(report).step == self.best.step and report.get("micro_f1") == self.best.micro_f1
            return report if same else None

        return distributed.from_main(read)

    def dev_again(self, best: nn.Module) -> dict[str, Any]:
        """Score dev with the best adapter and write it; returns the report."""
        evaluation = self.evaluator.evaluate(best, "dev", heartbeat=self.beat)
        self._write("dev", evaluation, self.best.step)
        return evaluation.report

    def _write(self, name: str, evaluation: Evaluation, step: int) -> None:
        limits = dict(self.evaluator.answer_limits)
        by = AnsweredBy(step, self.dtype, limits, configuration_hash(self.evaluator.config))
        write_evaluation(self.run.eval, name, evaluation, by)
