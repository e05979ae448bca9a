"""What made-up results on dev choose: the settings of a tuned method, and the arms that stay in a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anit_ds.experiments import CompareConfig
from anit_ds.experiments.cells import Cell, cells, tuning_cells
from anit_ds.experiments.dry_run import plan
from anit_ds.experiments.halving import standing
from anit_ds.experiments.records import Cells
from anit_ds.experiments.tuning import choose, tuned_cells
from anit_ds.identity import identity
from anit_ds.sealed import write_sealed


def comparison(tmp_path: Path, **changes: Any) -> CompareConfig:
    grid = {"datasets": [{"dataset": "sst2", "path": "none"}, {"dataset": "14lap", "path": "none"}]}
    raw = {
        "title": "made up", "base": {"model": {"name_or_path": "none"}}, "out": str(tmp_path), **changes,
        "grid": {**grid, **changes.get("grid", {})},
    }  # fmt: skip
    (tmp_path / "cells").mkdir(exist_ok=True)
    return CompareConfig.model_validate(raw)


def finish(results: Cells, cell: Cell, **scores: float | None) -> None:
    told = (
        {"status": "failed"} if scores.get("dev_nll", 0) is None else {"status": "done", "train_seconds": 1, **scores}
    )
    record = {**cell.axes(), "config_hash": cell.hash, "config": identity(cell.config), **told}
    write_sealed(results.folder / f"{cell.name}.json", record)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_trial_on_dev_is_chosen_on_each_data_set(best: int, tmp_path: Path) -> None:
    config = comparison(tmp_path, grid={"methods": ["sft", {"name": "anit", "tune": {"alpha": [0.01, 0.1, 1.0]}}]})
    results, trials = Cells(tmp_path), tuning_cells(config)
    for number, (_, _, cell) in enumerate(trials):
        at = number % 3 if cell.dataset == "sst2" else 2 - number % 3
        finish(results, cell, dev_micro_f1=0.7 if at == best else 0.2)
    alphas = (0.01, 0.1, 1.0)
    assert choose(trials, results) == {
        ("anit", "sst2"): {"alpha": alphas[best]}, ("anit", "14lap"): {"alpha": alphas[2 - best]},
    }  # fmt: skip


def test_a_plan_knows_what_was_chosen_and_nothing_untuned_is_trained(tmp_path: Path) -> None:
    """The set on which every trial failed has no cell of that method, and the others are done under what was chosen."""
    config = comparison(tmp_path, grid={"methods": ["sft", {"name": "anit", "tune": {"alpha": [0.01, 0.1]}}]})
    results, trials = Cells(tmp_path), tuning_cells(config)
    for key, settings, cell in trials:
        failed = key[1] == "14lap"
        finish(results, cell, dev_micro_f1=settings["alpha"], dev_nll=None if failed else 1.0)
    best = next(c for c in cells(config, choose(trials, results)) if (c.arm, c.dataset) == ("anit", "sst2"))
    finish(results, best, dev_micro_f1=0.1, dev_nll=1.0)
    planned = {(one.kind, one.name): one.done for one in plan(config)}
    assert planned["cell", best.name]
    made = tuned_cells(config, trials, choose(trials, results))
    assert [(c.arm, c.dataset) for c in made] == [("sft", "sst2"), ("anit", "sst2"), ("sft", "14lap")]


def test_a_transfer_names_the_choice_of_its_source(tmp_path: Path) -> None:
    transfers = [{"source": "sst2", "target": "14lap"}]
    methods = [{"name": "anit", "tune": {"alpha": [0.01, 0.1]}}]
    config = comparison(tmp_path, grid={"methods": methods}, transfers=transfers)
    assert [cell.chosen_by for cell in cells(config)] == [("anit", "sst2")] * 2


def test_arms_with_the_lowest_geometric_mean_stay(tmp_path: Path) -> None:
    """Over rungs of unequal size: 0.2 x 12 beats 0.4 x 9, though its sum is larger. A control stays, a failure goes."""
    methods = [
        {"name": "sft", "stays": True},
        *({"name": "anit", "label": label, "alpha": alpha} for label, alpha in (("a", 0.1), ("b", 0.2), ("c", 0.3))),
    ]
    config = comparison(tmp_path, grid={"methods": methods, "seeds": [1, 2]}, survivors=[3, 2, 1])
    results, every = Cells(tmp_path), cells(config)
    losses: dict[tuple[str, str], float | None] = {
        ("sft", "sst2"): 0.9, ("a", "sst2"): 0.4, ("b", "sst2"): 0.2, ("c", "sst2"): None,
        ("sft", "14lap"): 20.0, ("a", "14lap"): 9.0, ("b", "14lap"): 12.0,
    }  # fmt: skip

    def rungs() -> list[tuple[str, int, str]]:
        return [(cell.dataset, cell.config.train.seed, cell.arm) for cell in standing(config, every, results)]

    first = [("sst2", 1, arm) for arm in ("sft", "a", "b", "c")]
    assert rungs() == first, "the next rung has room for fewer arms, and waits"
    for cell in standing(config, every, results):
        finish(results, cell, dev_nll=losses[cell.arm, cell.dataset])
    second = [("14lap", 1, arm) for arm in ("sft", "a", "b")]
    assert rungs() == first + second
    for cell in standing(config, every, results)[len(first) :]:
        finish(results, cell, dev_nll=losses[cell.arm, cell.dataset])
    left = [(dataset, 2, arm) for dataset in ("sst2", "14lap") for arm in ("sft", "b")]
    assert rungs() == first + second + left, "no arm is dropped any more, so nothing waits"
