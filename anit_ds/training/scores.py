"""What a run is judged by: dev picks its adapter, the test split is read once, and the summary says what came out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from anit_ds.data.noise import NoSource
from anit_ds.evaluation import Evaluation, Evaluator, beside_raw, write_evaluation
from anit_ds.evaluation.labels import temperatures_of
from anit_ds.modeling import adapter_off
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder
from anit_ds.sealed import Damaged


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
    and may raise Interrupted, which they pass on."""

    evaluator: Evaluator
    run: RunFolder
    beat: Callable[[], None]
    best: Best = field(default_factory=Best)

    def untouched(self, model: nn.Module) -> float:
        """The base model's micro-F1 on test."""
        with adapter_off(model):
            evaluation = self.evaluator.evaluate(model, "test", progress=True, heartbeat=self.beat)
        write_evaluation(self.run.eval, "before", evaluation)
        return evaluation.micro_f1

    def dev(self, model: nn.Module, step: int, *, usable: bool) -> tuple[Evaluation, bool]:
        """(the evaluation on dev, whether it is the best so far).

        Never the best is a model that is not `usable`, and one that gives no gold answer a finite probability.
        """
        evaluation = self.evaluator.evaluate(model, "dev", progress=sys.stderr.isatty(), heartbeat=self.beat)
        better = usable and not evaluation.broken and evaluation.micro_f1 > self.best.micro_f1
        if better:
            self.best = Best(evaluation.micro_f1, step)
            write_evaluation(self.run.eval, "dev", evaluation)
        else:
            self.best.since += 1
        return evaluation, better

    def test(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """(report on the test split, what each noise of `eval.noises` does to it)."""
        self._calibrate(model)
        raw = self.evaluator.evaluate(model, "test", progress=True, heartbeat=self.beat)
        write_evaluation(self.run.eval, "test", raw)
        robustness: dict[str, dict[str, float]] = {}
        for noise in self.evaluator.config.eval.noises:
            try:
                bent = self.evaluator.evaluate(model, "test", noise=noise, progress=True, heartbeat=self.beat)
            except NoSource as error:
                distributed.logger().warning("test-%s is not scored: %s", noise, error)
                continue
            bent = beside_raw(bent, raw)
            write_evaluation(self.run.eval, f"test-{noise}", bent)
            robustness[noise] = {key: bent.report[key] for key in ("micro_f1", "gap", "consistency")}
        return raw.report, robustness

    def _calibrate(self, model: nn.Module) -> None:
        """Give labels the temperature that the best adapter had on dev."""
        try:
            self.evaluator.temperatures = distributed.from_main(lambda: temperatures_of(self.run.eval))
        except Damaged as error:
            distributed.logger().warning("%s; dev is scored again", error)
            write_evaluation(self.run.eval, "dev", self.evaluator.evaluate(model, "dev", heartbeat=self.beat))
            self.evaluator.temperatures = distributed.from_main(lambda: temperatures_of(self.run.eval))
