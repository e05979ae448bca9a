"""`anit compare` through its command: what is trained, in which order, what survives, and what is written."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Program
from matrix import rows

from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.experiments import load_compare_config
from anit_ds.experiments.cells import cells
from anit_ds.experiments.examples import telling_examples
from anit_ds.experiments.records import Cells
from anit_ds.identity import chosen, identity, same_result
from anit_ds.tiny import save_tiny, tiny_tokenizer


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


@pytest.fixture
def known(review_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The base of runs whose answers are known.

    The tiny model repeats the last token of its prompt, and its chat template ends in what the prompt calls for: y
    where the raw instruction is in it, or a text that is very good or very very anything, else n.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% set prompt = messages[0].content %}{{ prompt }}"
        "{{ 'y' if 'Say good or bad.' in prompt or 'very good' in prompt or 'very very' in prompt else 'n' }}"
    )
    tokenizer.save_pretrained(save_tiny(tmp_path / "known"))
    own = (review_folder / "instructions.yaml").read_text()
    words = "positive: positive, negative: negative", "positive: y, negative: n"
    (tmp_path / "own.yaml").write_text(own.replace(*words))
    return {
        "model": {"name_or_path": str(tmp_path / "known"), "dtype": "float32"},
        "data": {"instructions_file": str(tmp_path / "own.yaml")},
        "prompt": {"style": "chat"},
        "train": {"epochs": 1, "global_batch": 8, "micro_batch": 8, "lr": 1e-6},
        "eval": {"max_new_tokens": 1},
    }


@pytest.mark.slow
def test_tables_figures_and_report_come_from_the_cells(
    write, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    file = write(
        grid={
            "methods": ["sft", {"name": "anit", "label": "anit", "preset": "paper", "tune": {"alpha": [0.1, 0.4]}}],
            "omegas": [0.1, 0.4],
        },
        base={**known, "eval": {"max_new_tokens": 1, "noises": ["shuffle"]}},
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
    assert [result["micro_f1"] for result in made] == [0.5] * 3
    assert all(row[1].startswith("50.0 [") for row in rows[1:])
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
    assert cell["confusion"]["jsonl"]["matrix"] == [[3, 0, 0], [3, 0, 0]] and len(cell["answers"]["jsonl"]) == 6
    robust = list(csv.reader((out / "tables" / "robustness.csv").open()))
    assert [row[0] for row in robust] == [row[0] for row in rows], "computed, so shown"
    # Of three negative texts two are not very very bad, and right once the instruction is broken.
    expected = {"micro_f1": 5 / 6, "gap": 2 / 6, "consistency": 4 / 6}
    for result, row in zip(made, robust[1:], strict=True):
        assert result["robustness"]["shuffle"] == pytest.approx(expected)
        assert [entry.split(" [")[0] for entry in row[1:]] == ["50.0", "83.3", "33.3", "66.7"]
    capsys.readouterr()
    assert anit(monkeypatch, file) == 0
    assert "[" not in capsys.readouterr().out, "nothing is trained twice"

    (out / "cells" / f"{Path(made[2]['run']).name}.json").unlink()
    assert anit(monkeypatch, file, "--report-only") == 0
    assert "2 of 3 cells done" in (out / "report.html").read_text()


def test_the_most_telling_examples_take_neither_side():
    def result(arm: str, right: str) -> dict[str, Any]:
        """Of a method that answers the texts a to f, and these of them rightly."""
        said = ["yes" if text in right else "no" for text in "abcdef"]
        kept = [{"place": at, "text": "abcdef"[at], "gold": [["yes"]], "answer": word} for at, word in enumerate(said)]
        return {
            "arm": arm, "noise": "none", "dataset": "set", "transfer_from": None, "model": "m", "fraction": 1.0,
            "max_train": None, "instructions": "concise", "answers": {"set": kept},
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
    file = write(grid={"methods": ["sft", "noisy_sft", "anit"]})
    program = Program("anit", "compare", file, output=tmp_path / "said")
    finished = tmp_path / "comparison" / "cells"
    deadline = time.monotonic() + 300
    while not list(finished.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    program.kill()
    program.wait()
    before = {path: path.read_bytes() for path in finished.glob("*.json")}
    assert 1 <= len(before) < 3, "killed half-way"
    runs = tmp_path / "comparison"
    while _training_under(runs) and time.monotonic() < deadline:
        time.sleep(0.1)  # the orphaned cell notices, saves and ends by itself
    assert not _training_under(runs)
    assert anit(monkeypatch, file) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(told) == 3 - len(before)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [r["status"] for r in results(file)] == ["done"] * 3


LAUNCHER = """
trap 'touch {0}/told; kill $child' TERM
sleep 600 & child=$!
touch {0}/started
wait
touch {0}/saved
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "ended_by", rows([signal.SIGTERM, signal.SIGKILL], quick=[signal.SIGTERM]), ids=["TERM", "KILL"]
)
def test_a_launcher_ends_with_the_comparison(write, tmp_path: Path, ended_by: signal.Signals):
    (tmp_path / "launcher.sh").write_text(LAUNCHER.format(tmp_path))
    file = write(grid={"methods": ["sft"]}, launcher=f"bash {tmp_path}/launcher.sh")
    program = Program("anit", "compare", file, output=tmp_path / "said")
    deadline, runs = time.monotonic() + 200, tmp_path / "comparison"
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    program.send_signal(ended_by)
    assert program.wait(60) == (130 if ended_by == signal.SIGTERM else -ended_by)
    while _training_under(runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _training_under(runs)
    assert (tmp_path / "told").exists() and (tmp_path / "saved").exists(), "it may save before it ends"


@pytest.mark.slow
@pytest.mark.matrix
def test_a_cell_waits_for_the_process_that_an_earlier_comparison_left_in_its_folder(write, tmp_path: Path):
    file = write(grid={"methods": ["sft"]})
    (cell,) = cells(load_compare_config(str(file)))
    folder = Path(cell.config.out)
    folder.mkdir(parents=True)
    with open(folder / "output.txt", "a") as left_behind:
        fcntl.flock(left_behind, fcntl.LOCK_EX)
        program = Program("anit", "compare", file, output=tmp_path / "said")
        deadline = time.monotonic() + 120
        while not _others_with(folder / "output.txt") and time.monotonic() < deadline:
            assert program.poll() is None
            time.sleep(0.05)
        assert _others_with(folder / "output.txt")
        time.sleep(3)  # a cell that did not wait would have made its data by now
        assert sorted(path.name for path in folder.iterdir()) == ["asked.yaml", "output.txt"]
    assert program.wait(120) == 0
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
    there, back = ({"source": a, "target": b} for a, b in (("jsonl", "movie-reviews"), ("movie-reviews", "jsonl")))
    both = write(grid={"datasets": datasets, "fractions": [0.3, 0.6]}, transfers=[there, back])
    planned = [cell for cell in cells(load_compare_config(str(both))) if cell.source]
    assert [(c.source.dataset, c.dataset, c.arm, c.config.data.fraction) for c in planned] == [
        (a, b, arm, fraction)
        for fraction in (0.3, 0.6)
        for a, b in (("jsonl", "movie-reviews"), ("movie-reviews", "jsonl"))
        for arm in ("sft", "anit")
    ]  # fmt: skip
    file = write(grid={"datasets": datasets, "fractions": [0.6]}, transfers=[there], show=["table4"])
    assert anit(monkeypatch, file, "--jobs", 2) == 0
    moved = [r for r in results(file) if r["transfer_from"]]
    assert [(r["transfer_from"], r["dataset"], r["arm"], r["fraction"]) for r in moved] == [
        ("jsonl", "movie-reviews", "sft", 0.6), ("jsonl", "movie-reviews", "anit", 0.6)
    ]  # fmt: skip
    assert all(r["method"] == "sft" for r in moved)
    rows = list(csv.reader((tmp_path / "comparison" / "tables" / "table4.csv").open()))
    assert rows[0] == ["direction", "first training", "60%"]
    assert [row[:2] for row in rows[1:]] == [["jsonl → movie-reviews", "sft"], ["jsonl → movie-reviews", "anit"]]
    assert re.search(r"\] [+-]\d", rows[2][2]), "it has a difference"
    target = next(r for r in moved if r["arm"] == "anit")
    config = yaml.safe_load((tmp_path / "comparison" / target["run"] / "config.yaml").read_text())
    assert "-anit-" in config["lora"]["init_from"] and config["method"]["name"] == "sft"


@pytest.mark.slow
def test_a_mixture_is_scored_a_set_and_in_the_mean(
    write, known: dict[str, Any], review_folder: Path, monkeypatch, tmp_path: Path
):
    """Three of six texts are the y that all of them get, and one of the first four."""
    fewer = shutil.copytree(review_folder, tmp_path / "fewer")
    lines = (fewer / "test.jsonl").read_text().splitlines(keepends=True)
    (fewer / "test.jsonl").write_text("".join(lines[:4]))
    mix = [{"dataset": "jsonl", "path": str(review_folder)}, {"dataset": "movie-reviews", "path": str(fewer)}]
    file = write(base=known, grid={"datasets": [{"mix": mix}], "methods": ["sft"]})
    assert anit(monkeypatch, file) == 0
    (made,) = results(file)
    assert made["dataset"] == "jsonl+movie-reviews" and set(made["beta"]) == {"jsonl", "movie-reviews"}
    assert made["datasets"] == {"jsonl": 0.5, "movie-reviews": 0.25} and made["micro_f1"] == 0.375
    assert made["nll"] and made["dev_nll"] and {note.split(":")[0] for note in made["notes"]} == set(made["datasets"])
    rows = list(csv.reader((tmp_path / "comparison" / "tables" / "methods.csv").open()))
    assert rows[0] == ["", "jsonl (in jsonl+movie-reviews)", "movie-reviews (in jsonl+movie-reviews)", "mean"]
    assert [entry.split(" [")[0] for entry in rows[1][1:]] == ["50.0", "25.0", "37.5"]


def test_cells_of_other_texts_are_not_compared(
    write, review_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    data = shutil.copytree(review_folder, tmp_path / "reviews")
    sets = {"datasets": [{"dataset": "jsonl", "path": str(data)}], "seeds": [1]}
    base = {
        "train": {"max_steps": 1, "global_batch": 8, "micro_batch": 8}, "eval": {"max_new_tokens": 1},
        "data": {"instructions_file": str(data / "instructions.yaml")},
    }  # fmt: skip
    assert anit(monkeypatch, write(base=base, grid={**sets, "methods": ["sft"]})) == 0
    lines = (data / "test.jsonl").read_text().splitlines(keepends=True)
    (data / "test.jsonl").write_text("".join(lines[1:]) + lines[0].replace("text", "text", 1).replace("test", "west"))
    capsys.readouterr()
    assert anit(monkeypatch, write(base=base, grid={**sets, "methods": ["sft", "neftune"]})) == 2
    assert "of other test texts than jsonl-neftune" in capsys.readouterr().err
    folder = tmp_path / "comparison" / "cells"
    assert len(list(folder.iterdir())) == 2, "nothing is lost"
    # Another seed draws other texts by itself, but from the same files, and asks with the same instructions.
    (folder / next(name for name in os.listdir(folder) if "neftune" in name)).unlink()
    assert anit(monkeypatch, write(base=base, grid={**sets, "methods": ["sft"], "seeds": [1, 2]})) == 2
    assert "another file for test than jsonl-sft-none-s2" in capsys.readouterr().err
    (data / "test.jsonl").write_text("".join(lines))
    (folder / next(name for name in os.listdir(folder) if "-s2-" in name)).unlink()
    words = (data / "instructions.yaml").read_text()
    (data / "instructions.yaml").write_text(words.replace("Which?", "What?"))
    assert anit(monkeypatch, write(base=base, grid={**sets, "methods": ["sft"], "seeds": [1, 3]})) == 2
    assert "other instructions than jsonl-sft-none-s3" in capsys.readouterr().err


def test_a_training_that_is_refused_is_no_result(write, tmp_path: Path):
    """Whatever run lies in its folder, as after a default that has changed."""
    (cell, *_) = cells(load_compare_config(write()))
    run = Path(cell.config.out)
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "output.txt").write_text("anit: holds another configuration\n")
    kept = Cells(tmp_path / "comparison").keep(cell, 1.0, exit_code=2)
    assert kept["status"] == "failed"


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


@pytest.mark.parametrize("study", ["main", "text", "wnut17", "sizes", "attacks", "screen"])
def test_what_is_committed_of_a_study_is_still_its_own(study: str):
    """A default or a field that changes makes no other experiment of what was run: its line goes on."""
    root = Path(__file__).parents[2]
    config = load_compare_config(root / "examples" / "study" / f"{study}.yaml")
    kept = {file.stem: json.loads(file.read_text()) for file in (root / config.out / "cells").glob("*.json")}
    named = {cell.name: cell for cell in cells(config)}
    same = {name for name in kept.keys() & named.keys() if same_result(kept[name]["config"], named[name].config)}
    gone = 1 if study == "screen" else 0  # a cell of an arm that its grid no longer has
    assert kept and len(kept.keys() - same) == gone


def test_a_screen_reads_dev_alone_draws_each_step_and_goes_on_with_the_best(write, monkeypatch: pytest.MonkeyPatch):
    step = {"name": "anit", "step": "sign", "eps_unit": "absolute", "ball": "linf"}
    methods = [{"name": "sft", "stays": True}]
    methods += [{**step, "label": "small", "alpha": 0.1}, {**step, "label": "large", "alpha": 1.0}]
    file = write(
        base={"eval": {"test": False, "max_new_tokens": 4}},
        grid={"methods": methods, "seeds": [1, 2]}, survivors=[2, 1], show=["screen"],
    )  # fmt: skip
    assert anit(monkeypatch, file) == 0
    found = {cell["arm"]: cell for cell in results(file) if cell["seed"] == 1}
    best = min((arm for arm in found if arm != "sft"), key=lambda arm: found[arm]["dev_nll"])
    assert {cell["arm"] for cell in results(file) if cell["seed"] == 2} == {"sft", best}
    before = results(file)
    assert anit(monkeypatch, file) == 0
    assert results(file) == before, "the same line finds the same arms standing"
    assert all(cell["micro_f1"] is None and cell["dev_micro_f1"] is not None for cell in found.values())
    assert 0 < found["large"]["attack"]["nrm/cosine"] <= 1 and "nrm/cosine" not in found["sft"]["attack"]
    out = Path(yaml.safe_load(file.read_text())["out"])
    table = (out / "tables" / "screen.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[4:7]] == [f"| {arm}" for arm in found]
    assert "no test split was read" in table
    ratios = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[3] for line in table.splitlines()[4:7]}
    assert ratios["sft"] == "1.000"
    both = [[cell["dev_nll"] for cell in results(file) if cell["arm"] == arm] for arm in (best, "sft")]
    mean = math.prod(own / sft for own, sft in zip(*both, strict=True)) ** 0.5
    assert ratios[best].split(" ± ")[0] == f"{mean:.3f}"
    assert (out / "figures" / "screen.svg").is_file()
