"""What tables and figures make of raw and noisy cells side by side, from made-up results."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from anit_ds.experiments.figures import omega
from anit_ds.experiments.screen import screen
from anit_ds.experiments.tables import table4

AXES: dict[str, Any] = {
    "dataset": "sst2", "model": "m", "distortion": "rbe", "instructions": "concise", "phi": 0.8, "fraction": 1.0,
    "transfer_from": None, "seed": 1, "train_seconds": 1.0, "micro_f1": None, "attack": {},
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
