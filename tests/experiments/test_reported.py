"""What tables and figures make of raw and noisy cells side by side, from made-up results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import sem, t

from anit_ds.experiments.figures import omega
from anit_ds.experiments.overall import overall
from anit_ds.experiments.screen import screen
from anit_ds.experiments.sizes import draw_sizes
from anit_ds.experiments.tables import methods, table4

AXES: dict[str, Any] = {
    "dataset": "sst2", "model": "m", "distortion": "rbe", "instructions": "concise", "phi": 0.8, "fraction": 1.0,
    "max_train": 100, "transfer_from": None, "seed": 1, "train_seconds": 1.0, "micro_f1": None, "attack": {},
}  # fmt: skip


def result(arm: str, noise: str, level: float, score: float) -> dict[str, Any]:
    method = arm if arm in ("sft", "noisy_sft") else "anit"
    return {
        **AXES, "arm": arm, "method": method, "noise": noise, "omega": level, "config": {}, "micro_f1": score,
        "dev_micro_f1": score, "dev_nll": 1 - score,
    }  # fmt: skip


def test_the_screen_has_a_row_for_an_arm_s_raw_and_one_for_its_noisy_cells() -> None:
    made = [result("sft", "none", 0.0, 0.5), result("anit", "none", 0.0, 0.9), result("anit", "replacement", 0.2, 0.4)]
    rows = {row[0]: row[1] for row in screen(made).rows}
    assert rows.keys() == {"sft", "anit", "anit, replacement"}
    assert str(rows["anit"]).startswith("90.0") and str(rows["anit, replacement"]).startswith("40.0")


def test_figure_2a_has_a_level_for_every_raw_arm_and_a_line_for_every_noisy_one() -> None:
    axes = Figure().subplots()
    noisy = [result("anit (paper)", "shuffle", level, 0.5 + level) for level in (0.1, 0.3)]
    assert omega(axes, [result("sft", "none", 0.0, 0.6), result("anit", "none", 0.0, 0.8), *noisy])
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"sft": [60, 60], "anit": [80, 80], "anit (paper), shuffle": [60, 80]}
    assert omega(Figure().subplots(), [result("anit", "none", 0.0, 0.8)]), "levels alone are a figure"
    assert not omega(Figure().subplots(), [])


def test_table_4_has_a_row_for_each_direction_and_arm_and_a_column_for_each_share() -> None:
    scores = {
        ("a", "b", "sft"): (0.50, 0.70), ("a", "b", "anit"): (0.60, 0.65),
        ("b", "a", "sft"): (0.20, 0.30), ("b", "a", "anit"): (0.20, 0.45),
    }  # fmt: skip
    made = [
        {**result(arm, "none", 0.0, told[at]), "transfer_from": source, "dataset": target, "fraction": fraction}
        for at, fraction in enumerate((0.3, 0.6))
        for (source, target, arm), told in scores.items()
    ]
    table = table4(made)
    assert table.columns == ["direction", "first training", "30%", "60%"]
    assert table.texts() == [
        ["a → b", "sft", "50.0", "70.0"], ["a → b", "anit", "60.0 +10.0", "65.0 -5.0"],
        ["b → a", "sft", "20.0", "30.0"], ["b → a", "anit", "20.0 +0.0", "45.0 +15.0"],
    ]  # fmt: skip


def test_the_size_curve_is_a_line_through_the_means_and_sizes_are_not_mixed() -> None:
    scores = {("sft", 50): (0.5, 0.7), ("sft", 200): (0.8,), ("anit", 50): (0.6, 0.7), ("anit", 200): (0.9,)}
    made = [
        {**result(arm, "none", 0.0, score), "max_train": size, "seed": seed, "nll": 2 * score}
        for (arm, size), of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    figure = Figure()
    assert draw_sizes(figure, made)
    f1, nll = figure.axes
    drawn = {line.get_label(): [list(map(float, axis)) for axis in line.get_data()] for line in f1.lines}
    assert drawn == {"sft": [[50, 200], [60, 80]], "anit": [[50, 200], [65, 90]]}
    assert list(nll.lines[1].get_ydata()) == pytest.approx([1.3, 1.8])
    rows = {row[0]: row[1] for row in methods(made).texts()}
    assert rows == {
        "sft, max_train 50": "60.0", "sft, max_train 200": "80.0",
        "anit, max_train 50": "65.0 +5.0", "anit, max_train 200": "90.0 +10.0",
    }  # fmt: skip
    assert not draw_sizes(Figure(), [r for r in made if r["max_train"] == 50])


def test_over_the_data_sets_each_counts_once_and_plain_arms_are_baselines() -> None:
    """Two seeds of a, one of b and c; the pair that lacks its `sft` counts for nothing."""
    scores = {
        "sft, twice the epochs": {("a", 1): 0.54, ("b", 1): 0.33},
        "sft": {("a", 1): 0.50, ("a", 2): 0.60, ("b", 1): 0.30, ("c", 1): 0.40},
        "anit": {("a", 1): 0.53, ("a", 2): 0.65, ("b", 1): 0.32, ("c", 1): 0.39, ("c", 2): 0.99},
    }
    made = [
        {
            **result("sft" if arm.startswith("sft") else arm, "none", 0.0, score), "arm": arm, "dataset": dataset,
            "seed": seed, "nll": 2.0 if arm == "sft" else 1.0, "train_seconds": 4.0 if arm == "sft" else 6.0,
            "robustness": {"shuffle": {"micro_f1": score - 0.1, "gap": -0.01 * seed if arm == "sft" else -0.05}},
        }
        for arm, of_arm in scores.items()
        for (dataset, seed), score in of_arm.items()
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in overall(made).texts()}
    assert list(rows) == ["sft, twice the epochs – sft", "anit – sft", "anit – sft, twice the epochs"]
    by_set = [100 * (0.03 + 0.05) / 2, 100 * 0.02, -100 * 0.01]
    low, high = t.interval(0.95, 2, loc=np.mean(by_set), scale=sem(by_set))
    difference = f"{np.mean(by_set):+.1f} [{low:+.1f}, {high:+.1f}]"
    assert rows["anit – sft"] == [
        "4", "2 of 3", difference, difference, "-5.0, -1.2", "0.500 [0.500, 0.500]", "1.50"
    ]  # fmt: skip
    assert rows["anit – sft, twice the epochs"][:3] == ["2", "0 of 2", "-1.0 [-1.0, -1.0]"]
    assert overall([r for r in made if r["dataset"] == "a"]).rows == []
