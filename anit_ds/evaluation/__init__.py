"""Evaluation: greedy decoding on raw (or, for robustness, noisy) instructions, and micro-F1."""

from __future__ import annotations

from anit_ds.evaluation.evaluator import Evaluator
from anit_ds.evaluation.questions import Interrupted
from anit_ds.evaluation.report import Evaluation, write_evaluation
from anit_ds.evaluation.robustness import beside_raw

__all__ = ["Evaluation", "Evaluator", "Interrupted", "beside_raw", "write_evaluation"]
