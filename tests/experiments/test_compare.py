"""`anit compare` through its command: what is trained, in which order, what survives, and what is written."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anit_ds.adversarial import build_method
from anit_ds.adversarial.rules import METHODS
from anit_ds.commands.cli import main
from anit_ds.config import Config, MethodConfig
from anit_ds.errors import InputError
from anit_ds.experiments import CompareConfig, load_compare_config
from anit_ds.experiments.cells import cells, tuning_cells
from anit_ds.experiments.estimate import Device, passes_of, seconds
from anit_ds.experiments.examples import telling_examples
from anit_ds.experiments.grid import Grid
from anit_ds.experiments.records import Cells
from anit_ds.identity import chosen, identity, same_result


@pytest.fixture
def write(tiny_folder: Path, review_folder: Path, tmp_path: Path):
    """`write(grid={...}, show=[...])` makes a comparison's YAML of the tiny model and returns its path."""

    def write(**changes: Any) -> Path:
        base = {
            "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
            "data": {"instructions_file": str(review_folder / "instructions.yaml")},
            "lora": {"r": 4},
            "train": {"epochs": 2, "global_batch": 8, "micro_batch": 8, "lr": 1e-2},
            "eval": {"max_new_tokens": 4},
        }
        grid = {
            "methods": ["sft", "anit"],
            "instructions": ["concise"],
            "datasets": [{"dataset": "jsonl", "path": str(review_folder)}],
        }
        raw = {
            "title": "A tiny comparison",
            "out": str(tmp_path / "comparison"),
            **changes,
            "base": {**base, **changes.get("base", {})},
            "grid": {**grid, **changes.get("grid", {})},
        }
        file = tmp_path / "compare.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write


def anit(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["anit", "compare", *map(str, arguments)])
    try:
        main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def results(file: Path) -> list[dict[str, Any]]:
    out = Path(yaml.safe_load(file.read_text())["out"])
    return json.loads((out / "results.json").read_text())["cells"]


def test_the_grid_has_seeds_outermost_and_each_cell_once(write):
    file = write(
        grid={
            "methods": ["sft", "noisy_sft", "anit", {"name": "anit", "preset": "authors"}],
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
    # sft feels no noise; noisy_sft and a fixed beta feel no measure; `opposite` feels no omega
    assert counts == {"sft": 1, "noisy_sft": 3, "anit": 6, "anit (authors)": 3}
    assert [a[0] for a in of_seed[:4]] == ["sft", "noisy_sft", "anit", "anit (authors)"], "methods are innermost"


def test_init_prints_a_comparison_that_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert anit(monkeypatch, "--init") == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert anit(monkeypatch, tmp_path / "c.yaml", "--dry-run") == 0
    # 2 data sets: 2 tuned methods with 2 trials each, and 4 methods with 5 seeds
    assert capsys.readouterr().out.splitlines()[-1].startswith("48 cells, 0 done")
    for section in (CompareConfig, Grid):
        for name, field in section.model_fields.items():
            about = field.description.split("\n")[0]
            assert re.search(rf"# {re.escape(about)}\n( *#.*\n)* *{name}:", printed), name
    assert anit(monkeypatch, "--init", tmp_path / "c.yaml") == 2 and anit(monkeypatch) == 2


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
        ({"base": {"noise": {"kind": "shuffle"}}}, r"base.noise.kind: the grid decides it"),
        ({"transfers": [{"source": "jsonl", "target": "agnews"}]}, r"'agnews' is no data set of grid.datasets"),
        ({"grid": {"methods": [{"name": "sft", "eps": 2.0}]}}, r"cell jsonl, sft: method: sft does not use 'eps'"),
        ({"survivors": [2, 4]}, r"survivors: \[2, 4\] grows; no arm comes back"),
        ({"survivors": [1]}, r"the first rung has 1 places for 2 arms"),
        ({"grid": {"methods": ["anit", {"name": "anit", "alpha": 0.3}]}}, r"'anit' stands there twice"),
        ({"grid": {"omegas": [0.1, 0.2]}, "transfers": [{"source": "jsonl", "target": "jsonl"}]}, r"omegas: table 4"),
        ({"base": {"eval": {"noises": ["shuffle"]}}, "grid": {"omegas": [0]}}, r"eval.noises: at noise.omega 0"),
    ],
    ids=["method", "axis", "decided", "transfer", "cell", "survivors", "places", "labels", "transfers", "omega"],
)
def test_what_is_wrong_in_the_file_is_said_before_anything_runs(write, changes: dict, said: str):
    with pytest.raises(InputError, match=said):
        load_compare_config(write(**changes))


@pytest.mark.slow
def test_tables_figures_and_report_come_from_the_cells(write, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    file = write(
        grid={"methods": ["sft", {"name": "anit", "tune": {"alpha": [0.1, 0.4]}}], "omegas": [0.1, 0.4]},
        base={"eval": {"max_new_tokens": 4, "noises": ["shuffle"]}},
        show=["methods", "table2", "figure2a", "figure2b"],
    )
    assert anit(monkeypatch, file, "--jobs", 2) == 0
    out = tmp_path / "comparison"
    made = results(file)
    assert [(r["arm"], r["omega"], r["status"]) for r in made] == [
        ("sft", 0.0, "done"), ("anit", 0.1, "done"), ("anit", 0.4, "done")
    ]  # fmt: skip
    needed = {"dataset", "method", "preset", "model", "distortion", "instructions", "noise", "omega", "phi", "fraction",
              "transfer_from", "seed", "split", "micro_f1", "passes", "train_seconds", "config_hash"}  # fmt: skip
    assert all(needed <= r.keys() for r in made)
    assert [r["tuned"] is not None for r in made] == [False, True, True]
    trials = json.loads((out / "sweeps.json").read_text())["trials"]
    assert len(trials) == 2 and sum(t["chosen"] for t in trials) == 1
    rows = list(csv.reader((out / "tables" / "table2.csv").open()))
    assert [row[0] for row in rows] == ["", "sft", "anit, replacement, omega 0.1", "anit, replacement, omega 0.4"]
    for row, result in zip(rows[1:], made, strict=True):
        assert row[1].startswith(f"{100 * result['micro_f1']:.1f} [")
    assert "tuned on the dev split of the same data set: anit on jsonl" in (out / "tables" / "table2.md").read_text()
    assert r"\toprule" in (out / "tables" / "methods.tex").read_text()
    for name in ("figure2a", "figure2b", "methods-jsonl"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
        assert (out / "figures" / f"{name}.svg").stat().st_size > 5000
    page = (out / "report.html").read_text()
    links = re.findall(r"""(?:src|href|xlink:href)\s*=\s*["'](?!#)|url\((?!["']?#)|@import|<script|<link""", page)
    assert links == [], "a report that asks for something outside itself is not readable offline"
    assert all(f"{title}" in page for title in ("Methods", "Table 2", "Figure 2a", "Robustness", "A tiny comparison"))
    cell = json.loads((out / "cells" / f"{Path(made[1]['run']).name}.json").read_text())
    assert sum(map(sum, cell["confusion"]["jsonl"]["matrix"])) == len(cell["answers"]["jsonl"]) == 6, "of 6 test texts"
    robust = list(csv.reader((out / "tables" / "robustness.csv").open()))
    assert [row[0] for row in robust] == [row[0] for row in rows], "computed, so shown"
    gap, consistency = made[1]["robustness"]["shuffle"]["gap"], made[1]["robustness"]["shuffle"]["consistency"]
    assert robust[2][3].startswith(f"{100 * gap:.1f} [") and robust[2][4].startswith(f"{100 * consistency:.1f} [")
    capsys.readouterr()
    assert anit(monkeypatch, file) == 0
    assert "[" not in capsys.readouterr().out, "nothing is trained twice"


def test_the_most_telling_examples_take_neither_side():
    def result(arm: str, right: str) -> dict[str, Any]:
        """Of a method that answers the texts a to f, and these of them rightly."""
        said = ["yes" if text in right else "no" for text in "abcdef"]
        kept = [{"place": at, "text": "abcdef"[at], "gold": [["yes"]], "answer": word} for at, word in enumerate(said)]
        return {
            "arm": arm, "noise": "none", "dataset": "set", "transfer_from": None, "model": "m", "fraction": 1.0,
            "instructions": "concise", "answers": {"set": kept},
            "counts": {"set": [[int(word == "yes"), 1, 1] for word in said]},
        }  # fmt: skip

    told = telling_examples([result("sft", "abc"), result("anit", "ad"), result("pgd", "ad")])
    assert [e.text for e in told] == ["b", "d", "c"], "a is right and e, f are wrong everywhere"
    assert [(a.method, a.score, a.text) for a in told[0].answers] == [
        ("sft", 1.0, "yes"), ("anit", 0.0, "no"), ("pgd", 0.0, "no")
    ]  # fmt: skip


@pytest.mark.slow
def test_a_cell_that_cannot_run_is_reported_and_the_rest_completes(
    write, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    file = write(grid={"methods": ["sft"], "models": [str(tmp_path / "nowhere"), str(tiny_folder)]})
    assert anit(monkeypatch, file) == 1
    said = capsys.readouterr().err
    assert "FAILED: anit: model.name_or_path" in said and "nowhere" in said
    assert [r["status"] for r in results(file)] == ["failed", "done"]
    assert "there is no folder" in (tmp_path / "comparison" / "report.html").read_text()


@pytest.mark.slow
def test_a_killed_grid_resumes_without_repeating_a_finished_cell(
    write, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    file = write(grid={"methods": ["sft", "noisy_sft", "random", "anit"]})
    process = subprocess.Popen(
        [sys.executable, "-m", "anit_ds.commands.cli", "compare", str(file)], start_new_session=True
    )
    finished = tmp_path / "comparison" / "cells"
    deadline = time.monotonic() + 300
    while len(list(finished.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in finished.glob("*.json")}
    assert 2 <= len(before) < 4, "killed half-way"
    while _training_under(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)  # the orphaned cell notices, saves and ends by itself
    assert not _training_under(tmp_path)
    assert anit(monkeypatch, file) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(told) == 4 - len(before)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [r["status"] for r in results(file)] == ["done"] * 4


LAUNCHER = """
trap 'touch {0}/told; kill $child' TERM
sleep 600 & child=$!
touch {0}/started
wait
touch {0}/saved
"""


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_launcher_ends_with_the_comparison(write, tmp_path: Path, ended_by: signal.Signals):
    (tmp_path / "launcher.sh").write_text(LAUNCHER.format(tmp_path))
    file = write(grid={"methods": ["sft"]}, launcher=f"bash {tmp_path}/launcher.sh")
    process = subprocess.Popen([sys.executable, "-m", "anit_ds.commands.cli", "compare", str(file)])
    deadline = time.monotonic() + 200
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(ended_by)
    assert process.wait(60) == (130 if ended_by == signal.SIGTERM else -ended_by)
    while _training_under(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _training_under(tmp_path)
    assert (tmp_path / "told").exists() and (tmp_path / "saved").exists(), "it may save before it ends"


@pytest.mark.slow
def test_a_cell_waits_for_the_process_that_an_earlier_comparison_left_in_its_folder(write):
    file = write(grid={"methods": ["sft"]})
    (cell,) = cells(load_compare_config(str(file)))
    folder = Path(cell.config.out)
    folder.mkdir(parents=True)
    with open(folder / "output.txt", "a") as left_behind:
        fcntl.flock(left_behind, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-m", "anit_ds.commands.cli", "compare", str(file)])
        deadline = time.monotonic() + 120
        while not _others_with(folder / "output.txt") and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        assert _others_with(folder / "output.txt")
        time.sleep(3)  # a cell that did not wait would have made its data by now
        assert sorted(path.name for path in folder.iterdir()) == ["asked.yaml", "output.txt"]
    assert process.wait(120) == 0
    assert [r["status"] for r in results(file)] == ["done"]


def _others_with(file: Path) -> list[int]:
    """Other processes that have this file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and any(link.resolve() == file for link in process.glob("fd/*")):
                found.append(int(process.name))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found


def _training_under(folder: Path) -> list[int]:
    """Processes that hold a file of this folder open: cells whose output goes there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd" / "1").startswith(str(folder)):
                found.append(int(process.name))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found


@pytest.mark.slow
def test_transfer_goes_on_from_each_arm_by_plain_sft(write, review_folder: Path, monkeypatch, tmp_path: Path):
    datasets = [
        {"dataset": "jsonl", "path": str(review_folder)},
        {"dataset": "movie-reviews", "path": str(review_folder)},
    ]
    file = write(
        grid={"datasets": datasets, "fractions": [0.3, 0.6]},
        transfers=[{"source": "jsonl", "target": "movie-reviews"}, {"source": "movie-reviews", "target": "jsonl"}],
        show=["table4"],
    )
    assert anit(monkeypatch, file, "--jobs", 2) == 0
    moved = [r for r in results(file) if r["transfer_from"]]
    assert {(r["transfer_from"], r["dataset"], r["arm"], r["fraction"]) for r in moved} == {
        (a, b, arm, f)
        for a, b in (("jsonl", "movie-reviews"), ("movie-reviews", "jsonl"))
        for arm in ("sft", "anit")
        for f in (0.3, 0.6)
    }
    assert all(r["method"] == "sft" for r in moved)
    rows = list(csv.reader((tmp_path / "comparison" / "tables" / "table4.csv").open()))
    assert rows[0] == ["direction", "first training", "30%", "60%"]
    assert [row[:2] for row in rows[1:]] == [
        ["jsonl → movie-reviews", "sft"], ["jsonl → movie-reviews", "anit"],
        ["movie-reviews → jsonl", "sft"], ["movie-reviews → jsonl", "anit"],
    ]  # fmt: skip
    assert all(re.search(r"\] [+-]\d", text) for row in (rows[2], rows[4]) for text in row[2:]), "each has a difference"
    target = next(r for r in moved if r["arm"] == "anit")
    config = yaml.safe_load((tmp_path / "comparison" / target["run"] / "config.yaml").read_text())
    assert "-anit-" in config["lora"]["init_from"] and config["method"]["name"] == "sft"


@pytest.mark.slow
def test_a_mixture_is_scored_a_set_and_in_the_mean(write, review_folder: Path, monkeypatch, tmp_path: Path):
    mix = [{"dataset": "jsonl", "path": str(review_folder)}, {"dataset": "movie-reviews", "path": str(review_folder)}]
    file = write(grid={"datasets": [{"mix": mix}]})
    assert anit(monkeypatch, file, "--jobs", 2) == 0
    made = results(file)
    assert [r["dataset"] for r in made] == ["jsonl+movie-reviews"] * 2
    for r in made:
        assert set(r["datasets"]) == set(r["beta"]) == {"jsonl", "movie-reviews"}
        assert r["micro_f1"] == pytest.approx(sum(r["datasets"].values()) / 2)
    rows = list(csv.reader((tmp_path / "comparison" / "tables" / "methods.csv").open()))
    assert rows[0] == ["", "jsonl (in jsonl+movie-reviews)", "movie-reviews (in jsonl+movie-reviews)", "mean"]


def test_the_plan_lists_every_cell_with_its_time(write, monkeypatch: pytest.MonkeyPatch, capsys):
    file = write(grid={"seeds": [1, 2]})
    monkeypatch.setattr(sys, "argv", ["anit", "compare", str(file), "--dry-run"])
    main()
    said = capsys.readouterr().out
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


def test_a_training_that_is_refused_is_no_result(write, tmp_path: Path):
    """Whatever run lies in its folder, as after a default that has changed."""
    (cell, *_) = cells(load_compare_config(write()))
    run = Path(cell.config.out)
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "output.txt").write_text("anit: holds another configuration\n")
    kept = Cells(tmp_path / "comparison").keep(cell, 1.0, exit_code=2)
    assert kept["status"] == "failed"


def test_a_cell_is_timed_by_those_that_are_done(write):
    """In proportion to passes, epochs and rows a sample; never a cell of other data."""
    methods = ["sft", {"name": "anit", "label": "more", "set": {"train.epochs": 6, "noise.views": 4}}]
    sft, more = cells(load_compare_config(write(grid={"methods": methods})))
    done = {**sft.axes(), "config": identity(sft.config), "passes": 1, "seconds": 10.0}
    assert seconds(sft, [done], Device(gpu=False, threads=1)) == 10.0
    assert seconds(more, [done], Device(gpu=False, threads=1)) == pytest.approx(10.0 * 3 * 6 / 2 * 4)
    other = {**done, "dataset": "sst2"}
    assert seconds(sft, [other], Device(gpu=False, threads=1)) != 10.0


def test_the_plan_counts_the_passes_that_the_methods_make():
    for name in METHODS:
        for more in ({}, {"gradient": "clean"}) if name == "anit" else ({},):
            method = MethodConfig(name=name, **more)
            settings = SimpleNamespace(method=method)
            assert passes_of(settings) == build_method(method, seed=1, scale=1.0).passes, name


def test_a_record_of_a_version_with_fewer_fields_still_counts(make_config: Callable[..., Config]):
    config = make_config(**{"train.lr": 3e-3})
    recorded = identity(config)
    del recorded["method.init_norm"]  # as if that field, at its default here, had come later
    assert same_result(recorded, config)
    assert not same_result({**recorded, "method.init_norm": 0.5}, config)
    assert not same_result({**recorded, "train.warmup": 0.5}, config), "a default that has changed since"
    assert not same_result({**recorded, "train.gone": 1}, config)
    assert "train.lr" in chosen(config) and "train.adam_eps" not in chosen(config)
    columns = make_config(**{"data.columns": {"label": "stars"}})
    assert "data.columns.label" in chosen(columns) and "data.columns.separator" not in identity(columns)


def test_a_screen_reads_dev_alone_draws_each_step_and_goes_on_with_the_best(write, monkeypatch: pytest.MonkeyPatch):
    step = {"name": "anit", "eps_unit": "absolute", "ball": "linf"}
    methods = [{"name": "sft", "stays": True}]
    methods += [{**step, "label": "small", "alpha": 0.1}, {**step, "label": "large", "alpha": 1.0}]
    methods.append({"name": "sft", "label": "sft, twice the epochs", "set": {"train.epochs": 4}})
    file = write(
        base={"eval": {"test": False, "max_new_tokens": 4}},
        grid={"methods": methods, "seeds": [1, 2]}, survivors=[3, 1], show=["screen"],
    )  # fmt: skip
    assert anit(monkeypatch, file) == 0
    found = {cell["arm"]: cell for cell in results(file) if cell["seed"] == 1}
    best = min((arm for arm in found if arm != "sft"), key=lambda arm: found[arm]["dev_nll"])
    assert {cell["arm"] for cell in results(file) if cell["seed"] == 2} == {"sft", best}
    before = results(file)
    assert anit(monkeypatch, file) == 0
    assert results(file) == before, "the same line finds the same arms standing"
    assert all(cell["micro_f1"] is None and cell["dev_micro_f1"] is not None for cell in found.values())
    assert found["sft, twice the epochs"]["steps"] == 2 * found["sft"]["steps"]
    assert 0 < found["large"]["attack"]["nrm/cosine"] <= 1 and "nrm/cosine" not in found["sft"]["attack"]
    out = Path(yaml.safe_load(file.read_text())["out"])
    table = (out / "tables" / "screen.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[4:8]] == [f"| {arm}" for arm in found]
    assert "no test split was read" in table
    ratios = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[3] for line in table.splitlines()[4:8]}
    assert ratios["sft"] == "1.000"
    both = [[cell["dev_nll"] for cell in results(file) if cell["arm"] == arm] for arm in (best, "sft")]
    mean = math.prod(own / sft for own, sft in zip(*both, strict=True)) ** 0.5
    assert ratios[best].split(" ± ")[0] == f"{mean:.3f}"
    assert (out / "figures" / "screen.svg").is_file()
