"""Comparisons: a grid of runs from one YAML, its statistics, the paper's tables and figures, and a report."""

from __future__ import annotations

from anit_ds.experiments.compare import compare, describe_plan
from anit_ds.experiments.grid import CompareConfig, load_compare_config

__all__ = ["CompareConfig", "compare", "describe_plan", "load_compare_config"]
