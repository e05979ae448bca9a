"""What a comparison's YAML spans: its cells, their settings and names, what is refused, and how long they will take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.config import MethodConfig
from anit_ds.errors import InputError
from anit_ds.experiments import CompareConfig, load_compare_config
from anit_ds.experiments.cells import cells, tuning_cells
from anit_ds.experiments.estimate import Device, seconds
from anit_ds.experiments.grid import Grid
from anit_ds.identity import identity


def test_the_grid_has_seeds_outermost_and_each_cell_once(write):
    file = write(
        grid={
            "methods": [
                "sft",
                "noisy_sft",
                "anit",
                {"name": "anit", "preset": "paper"},
                {"name": "anit", "preset": "authors"},
            ],
            "noises": ["shuffle", "opposite"],
            "omegas": [0.1, 0.3],
            "distortions": ["rbe", "lme"],
            "seeds": [1, 2],
        }  # fmt: skip
    )
    axes = [cell.axes() for cell in cells(load_compare_config(file))]
    assert [a["seed"] for a in axes] == sorted(a["seed"] for a in axes)
    of_seed = [(a["arm"], a["noise"], a["omega"], a["distortion"]) for a in axes if a["seed"] == 1]
    assert len(of_seed) == len(set(of_seed))
    counts = {arm: sum(a[0] == arm for a in of_seed) for arm, *_ in of_seed}
    # sft feels no noise; noisy_sft, ours (no start) and a fixed beta feel no measure; `opposite` feels no omega
    assert counts == {"sft": 1, "noisy_sft": 3, "anit": 3, "anit (paper)": 6, "anit (authors)": 3}
    assert [a[0] for a in of_seed[:5]] == list(counts), "methods are innermost"


def test_without_a_noise_each_method_has_its_own(write):
    """What a run of it without noise.kind has, whichever way the arm is told its preset and its noise."""
    base = {"noise": {"phi": 0.7}, "eval": {"noises": ["shuffle"]}}
    noisy = {"noise.kind": "shuffle"}
    methods = [
        "sft", "noisy_sft", "anit", {"name": "anit", "preset": "paper"},
        {"name": "anit", "label": "set paper", "set": {"method.preset": "paper"}},
        {"name": "anit", "label": "set noise", "set": noisy}, {"name": "sft", "label": "sft, set", "set": noisy},
    ]  # fmt: skip
    planned = cells(load_compare_config(write(base=base, grid={"methods": methods})))
    found = {cell.arm: cell.config for cell in planned}
    assert all(f"-{cell.config.noise.kind}-s" in cell.name for cell in planned), "a name says the noise of training"
    assert {arm: (run.noise.kind, run.noise.omega, run.noise.phi) for arm, run in found.items()} == {
        "sft": ("none", 0.0, 0.0), "noisy_sft": ("replacement", 0.2, 0.7), "anit": ("none", 0.0, 0.0),
        "anit (paper)": ("replacement", 0.2, 0.7), "set paper": ("replacement", 0.2, 0.7),
        "set noise": ("shuffle", 0.2, 0.7), "sft, set": ("none", 0.0, 0.0),
    }  # fmt: skip
    assert {run.omega_at_evaluation for run in found.values()} == {0.2}


def test_trials_are_as_long_as_the_cells_they_choose_for(write):
    methods = [{"name": "anit", "tune": {"alpha": [0.01, 0.1], "preset": ["ours", "paper"]}}]
    config = load_compare_config(write(grid={"methods": methods, "fractions": [0.5]}))
    assert {trial.cell.config.data.fraction for trial in tuning_cells(config)} == {0.5}
    assert {(t.settings["preset"], t.cell.config.noise.kind) for t in tuning_cells(config)} == {
        ("ours", "none"), ("paper", "replacement")
    }  # fmt: skip


def test_a_table_of_one_s_own_says_its_columns_and_instructions(write, review_folder: Path):
    words = str(review_folder / "instructions.yaml")
    here = {"dataset": "own", "path": "own.csv", "columns": {"text": "body"}, "instructions_file": words}
    set_ = {"data.columns": {"text": "body"}, "data.instructions_file": words}
    one, other = (
        cells(load_compare_config(write(grid={"datasets": [spec], "methods": ["sft"]})))[0]
        for spec in (here, {"dataset": "own", "path": "own.csv", "set": set_})
    )
    assert one.hash == other.hash and one.config.data.columns.text == "body"


def test_sizes_are_numbers_of_training_examples_and_nothing_else_may_set_them(write):
    planned = cells(load_compare_config(write(grid={"methods": ["sft", "fgsm"], "sizes": [2, 4]})))
    assert [(c.arm, c.config.data.max_train, c.axes()["max_train"], c.name.split("-")[3]) for c in planned] == [
        ("sft", 2, 2, "n2"), ("fgsm", 2, 2, "n2"), ("sft", 4, 4, "n4"), ("fgsm", 4, 4, "n4")
    ]  # fmt: skip
    of_two = [{"name": "sft", "set": {"data.max_train": 2}}]
    one = cells(load_compare_config(write(grid={"methods": of_two})))
    assert one[0].hash == planned[0].hash, "a size is the run that max_train makes"
    for twice in ({"base": {"data": {"max_train": 2}}, "grid": {}}, {"grid": {"methods": of_two}}):
        twice["grid"]["sizes"] = [2, 4]
        with pytest.raises(InputError, match="data.max_train: grid.sizes decides it"):
            load_compare_config(write(**twice))


def test_init_prints_a_comparison_that_runs_as_it_stands(tmp_path: Path, anit: Callable[..., str]):
    printed = anit("compare", "--init")
    (tmp_path / "c.yaml").write_text(printed)
    # 2 data sets: 2 tuned methods with 2 trials each, and 4 methods with 5 seeds
    assert anit("compare", tmp_path / "c.yaml", "--dry-run").splitlines()[-1].startswith("48 cells, 0 done")
    for section in (CompareConfig, Grid):
        for name, field in section.model_fields.items():
            about = field.description.split("\n")[0]
            assert re.search(rf"# {re.escape(about)}\n( *#.*\n)* *{name}:", printed), name
    anit("compare", "--init", tmp_path / "c.yaml", code=2)
    anit("compare", code=2)


def test_tuned_methods_must_have_equally_many_trials(write):
    methods = [{"name": "pgd", "tune": {"eps": [1, 2]}}, {"name": "fgm", "tune": {"eps": [1, 2, 3]}}]
    with pytest.raises(InputError, match=r"tuned methods need equally many trials, but they have pgd 2, fgm 3"):
        load_compare_config(write(grid={"methods": methods}))
    methods[1]["tune"] = {"eps": [1, 2]}
    trials = tuning_cells(load_compare_config(write(grid={"methods": methods})))
    assert [(label, settings["eps"]) for (label, _), settings, _ in trials] == [
        ("pgd", 1), ("pgd", 2), ("fgm", 1), ("fgm", 2)
    ]  # fmt: skip
    assert not any(cell.config.eval.test for _, _, cell in trials), "trials never read the test split"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"grid": {"methods": ["sfd"]}}, r"no method is called 'sfd'"),
        ({"grid": {"omega": [0.1]}}, r"grid.omega: unknown key; did you mean omegas\?"),
        ({"grid": {"methods": [{"name": "anit", "tune": {"noise.phi": [0.2, 0.9]}}]}}, r"noise.phi changes nothing"),
        (
            {"grid": {"datasets": [{"dataset": "sst2", "path": "a"}, {"dataset": "sst2", "path": "b"}]}},
            r"grid.datasets: 'sst2' stands there twice",
        ),
        ({"base": {"noise": {"kind": "shuffle"}}}, r"base.noise.kind: the grid decides it"),
        ({"transfers": [{"source": "jsonl", "target": "agnews"}]}, r"'agnews' is no data set of grid.datasets"),
        ({"grid": {"methods": [{"name": "sft", "eps": 2.0}]}}, r"cell jsonl, sft: method: sft does not use 'eps'"),
        ({"survivors": [2, 4]}, r"survivors: \[2, 4\] grows; no arm comes back"),
        ({"survivors": [1]}, r"the first rung has 1 places for 2 arms"),
        ({"grid": {"methods": ["anit", {"name": "anit", "alpha": 0.3}]}}, r"'anit' stands there twice"),
        ({"grid": {"omegas": [0.1, 0.2]}, "transfers": [{"source": "jsonl", "target": "jsonl"}]}, r"omegas: table 4"),
        ({"base": {"eval": {"noises": ["shuffle"]}}, "grid": {"omegas": [0]}}, r"eval.noises: at noise.omega 0"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_before_anything_runs(write, changes: dict, said: str):
    with pytest.raises(InputError, match=said):
        load_compare_config(write(**changes))


def test_the_plan_lists_every_cell_with_its_time(write, anit: Callable[..., str]):
    said = anit("compare", write(grid={"seeds": [1, 2]}), "--dry-run")
    assert said.count("a step, about") == 4
    assert "4 cells, 0 done; about" in said and "rough count of operations" in said


def test_all_arms_are_tested_under_the_same_noise(write):
    for more in ({}, {"omega": None}):
        file = write(base={"eval": {"noises": ["shuffle"], **more}}, grid={"omegas": [0.3, 0.5]})
        assert {cell.config.omega_at_evaluation for cell in cells(load_compare_config(file))} == {0.3}


def test_arms_with_equal_settings_have_a_cell_each(write):
    methods = ["anit", {"name": "anit", "label": "tuned", "tune": {"alpha": [0.1, 0.5]}}]
    config = load_compare_config(write(grid={"methods": methods}))
    chosen = {("tuned", "jsonl"): {"alpha": MethodConfig(name="anit").alpha}}
    ours, tuned = cells(config, chosen)
    assert ours.hash == tuned.hash and ours.name != tuned.name


def test_a_cell_is_timed_by_those_that_are_done(write):
    """In proportion to passes, epochs and rows a sample; never a cell of other data."""
    methods = [
        "sft",
        {"name": "anit", "label": "more", "preset": "paper", "set": {"train.epochs": 6, "noise.views": 4}},
    ]
    sft, more = cells(load_compare_config(write(grid={"methods": methods})))
    done = {**sft.axes(), "config": identity(sft.config), "passes": 1, "seconds": 10.0}
    assert seconds(sft, [done], Device(gpu=False, threads=1)) == 10.0
    assert seconds(more, [done], Device(gpu=False, threads=1)) == pytest.approx(10.0 * 3 * 6 / 2 * 4)
    other = {**done, "dataset": "sst2"}
    assert seconds(sft, [other], Device(gpu=False, threads=1)) != 10.0


def test_a_factor_lengthens_each_data_set_s_own_epochs(write):
    longer = {"name": "sft", "label": "longer", "epochs_factor": 2}
    sets = [{"dataset": "jsonl", "path": "a"}, {"dataset": "sst2", "path": "b", "set": {"train.epochs": 6}}]
    file = write(base={"train": {"max_steps": None}}, grid={"methods": ["sft", longer], "datasets": sets})
    got = {(cell.dataset, cell.arm): cell.config.train.epochs for cell in cells(load_compare_config(file))}
    plain = got["jsonl", "sft"]
    assert got == {
        ("jsonl", "sft"): plain, ("jsonl", "longer"): 2 * plain, ("sst2", "sft"): 6, ("sst2", "longer"): 12,
    }  # fmt: skip
    file = write(base={"train": {"max_steps": 3}}, grid={"methods": ["sft", longer]})
    with pytest.raises(InputError, match=r"longer: epochs_factor has no effect where train\.max_steps ends a run"):
        list(cells(load_compare_config(file)))
    file = write(base={"train": {"max_steps": None, "epochs": "3 epochs"}}, grid={"methods": [longer]})
    with pytest.raises(InputError, match=r"train\.epochs"):
        list(cells(load_compare_config(file)))
