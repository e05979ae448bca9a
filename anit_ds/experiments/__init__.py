"""Comparisons: a grid of runs from one YAML, its statistics, the paper's tables and figures, and a report."""

from __future__ import annotations

from anit_ds.experiments.cells import Cell, load_compare_config
from anit_ds.experiments.compare import Listener, Outcome, compare
from anit_ds.experiments.dry_run import Planned, plan
from anit_ds.experiments.grid import CompareConfig, example_yaml

__all__ = [
    "Cell",
    "CompareConfig",
    "Listener",
    "Outcome",
    "Planned",
    "compare",
    "example_yaml",
    "load_compare_config",
    "plan",
]
