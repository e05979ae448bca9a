"""A run over two tasks at once: each set keeps its own instructions, noise and beta, and is scored for itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

import pytest

from anit_ds.config import Config
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.training import train

# The tiny model repeats the last byte of its prompt: to it every film is positive, and no answer names a triplet.
FILMS = """
task: classification
question: What does the text say about the film?
format: one label
labels: {positive: ":::", negative: negative}
concise: [Say whether the film is good., Judge the film by the text.]
"""


@pytest.fixture
def mixture(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    reviews, laptops = tmp_path / "reviews", tmp_path / "laptops"
    reviews.mkdir(), laptops.mkdir()
    (reviews / "own.yaml").write_text(FILMS)
    for split in ("train", "dev", "test"):
        rows = [{"text": f"film {i}", "label": ["positive", "negative"][i % 2]} for i in range(8)]
        (reviews / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = [f"The screen {i} is great .####[([1], [4], 'POS')]\n" for i in range(6)]
        (laptops / f"{split}_triplets.txt").write_text("".join(lines))
    mix = [
        {"dataset": "movie-reviews", "path": str(reviews), "weight": 0.5,
         "instructions_file": str(reviews / "own.yaml")},
        {"dataset": "14lap", "path": str(laptops), "weight": 2, "instructions": "detailed"},
    ]  # fmt: skip
    data = {"mix": mix, "instructions": "concise", "max_length": 1500}
    return make_config(data=data, **{"train.epochs": 1, "train.lr": 1e-6, "eval.max_new_tokens": 3})


def test_scores_and_betas_of_each_set(mixture: Config):
    summary = train(mixture)
    assert summary is not None and set(summary["beta"]) == {"movie-reviews", "14lap"}
    assert set(summary["after"]["datasets"]) == {"movie-reviews", "14lap"}
    for name, beta in summary["beta"].items():
        manifest = json.loads((Path(mixture.out) / "data" / name / "manifest.json").read_text())
        assert manifest["distortion"]["beta"] == beta and 0 < beta <= 1
    assert {name: r["micro_f1"] for name, r in summary["after"]["datasets"].items()} == {
        "movie-reviews": 0.5, "14lap": 0.0,
    }  # fmt: skip
    after = summary["after"]
    assert after["micro_f1"] == summary["dev"]["micro_f1"] == 0.25
    for key in ("nll", "nll_per_token"):
        assert after[key] == pytest.approx(geometric_mean(part[key] for part in after["datasets"].values()))
    shares = [part["parse_failures"] for part in after["datasets"].values()]
    assert after["parse_failures"] == pytest.approx(sum(shares) / len(shares)) and sum(shares) > 0


def test_weights_that_leave_nothing_are_refused(mixture: Config):
    mix = [item.model_copy(update={"weight": 0.001}) for item in mixture.data.mix]
    config = mixture.model_copy(update={"data": mixture.data.model_copy(update={"mix": mix})})
    with pytest.raises(InputError, match="data.mix: with these weights no training sample is left"):
        train(config)


def test_weights_say_how_often_a_set_is_drawn(mixture: Config):
    samples = [sample for (sample,) in RunData.load(mixture, None).train_samples(seed=1, epoch=0)]
    drawn = [s.dataset for s in samples]
    assert drawn.count("movie-reviews") == 4 and drawn.count("14lap") == 12


def test_texts_of_one_set_on_which_another_trains_are_told(mixture: Config, caplog: pytest.LogCaptureFixture):
    RunData.load(mixture, None)
    assert "stand in" not in caplog.text.replace("stand in train too", "")
    with (Path(mixture.data.mix[0].path or "") / "test.jsonl").open("a") as reviews:
        reviews.write(json.dumps({"text": "The screen 1 is great .", "label": "positive"}) + "\n")
    RunData.load(mixture, None)
    assert "movie-reviews: 1 of 9 texts of test stand in the train of 14lap" in caplog.text
