"""`anit eval`, `anit predict` and `anit export` on a trained run, beside what transformers and PEFT do alone."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from threading import Thread

import datasets
import peft
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from anit_ds.commands.cli import main
from anit_ds.config import Config
from anit_ds.data.prompts import render_prompt
from anit_ds.data.rundata import RunData
from anit_ds.modeling import WEIGHTS_SEAL, weights_about
from anit_ds.runfolder import RunFolder
from anit_ds.sealed import seal_folder
from anit_ds.tiny import save_tiny, tiny_tokenizer
from anit_ds.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `run` has its run from."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(trained: Path, make_config: Callable[..., Config]) -> Config:
    """A run to do with as one likes, trained once for all of them."""
    config = make_config(**{"train.epochs": 4, "train.lr": 1e-2, "lora.r": 8, "eval.max_new_tokens": 12})
    if not trained.exists():
        train(config.model_copy(update={"out": str(trained)}))
    shutil.copytree(trained, config.out)
    return config


@pytest.fixture
def parrot(make_config: Callable[..., Config], review_folder: Path, tmp_path: Path) -> Config:
    """A run whose answers are known.

    The tiny model repeats the last token of its prompt, and its chat template ends in what the prompt calls for: y
    where the raw instruction is in it, or a text that is very good or very very anything, else n.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% set prompt = messages[0].content %}{{ prompt }}"
        "{{ 'y' if 'Say good or bad.' in prompt or 'very good' in prompt or 'very very' in prompt else 'n' }}"
    )
    tokenizer.save_pretrained(save_tiny(tmp_path / "parrot"))
    own = (review_folder / "instructions.yaml").read_text()
    (tmp_path / "own.yaml").write_text(
        own.replace("positive: positive, negative: negative", "positive: y, negative: n")
    )
    return make_config("known", **{
        "model.name_or_path": str(tmp_path / "parrot"), "data.instructions_file": str(tmp_path / "own.yaml"),
        "prompt.style": "chat", "train.lr": 1e-6, "train.epochs": 1, "eval.max_new_tokens": 1,
        "eval.noises": ["shuffle"],
    })  # fmt: skip


def anit(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["anit", *map(str, arguments)])
    main()


def greedy_one_by_one(model: torch.nn.Module, tokenizer, prompt: str, length: int) -> str:
    """Greedy decoding written out: no batch, no padding, no cache."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(length):
        with torch.no_grad():
            following = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        if following == tokenizer.eos_token_id:
            break
        ids.append(following)
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_peft_alone_gives_the_answers_of_predict(run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    samples = RunData.load(run, RunFolder(run.out).data)["jsonl"].split("test")
    texts, answers = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl"
    texts.write_text("".join(json.dumps({"text": s.text, "mine": i}) + "\n" for i, s in enumerate(samples)))
    anit(monkeypatch, "predict", run.out, "--input", texts, "--output", answers, "--dtype", "float32")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    base = transformers.AutoModelForCausalLM.from_pretrained(run.model.name_or_path, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(Path(run.out) / "adapter")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model.name_or_path)
    expected = [greedy_one_by_one(model, tokenizer, render_prompt(s), 12) for s in samples]
    assert [row["answer"] for row in rows] == expected
    assert any(expected) and [row["mine"] for row in rows] == list(range(len(samples)))


def test_labels_have_the_probabilities_of_plain_passes_at_the_temperature_of_dev(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    samples = RunData.load(run, RunFolder(run.out).data)["jsonl"].split("test")
    texts, answers, dev = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl", Path(run.out) / "eval" / "dev.json"
    texts.write_text("".join(json.dumps({"text": s.text}) + "\n" for s in samples))
    ask = ("predict", run.out, "--input", texts, "--output", answers)
    anit(monkeypatch, *ask)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    temperature = json.loads(dev.read_text())["labels"]["temperature"]
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(run.model.name_or_path, dtype=torch.float32),
        str(Path(run.out) / "adapter"),
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model.name_or_path)
    for sample, row in zip(samples, rows, strict=True):
        prompt = tokenizer(render_prompt(sample))["input_ids"]
        scores = []
        for label in ("positive", "negative"):
            answer = [*tokenizer(f" {label}")["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            scores.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
        expected = (torch.stack(scores) / temperature).softmax(0).tolist()
        assert list(row["probabilities"].values()) == pytest.approx(expected, abs=2e-4)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)

    anit(monkeypatch, *ask, "--threshold", "positive=1", "--threshold", "negative=1")
    assert all(json.loads(line)["label"] is None for line in answers.read_text().splitlines())
    assert f"{len(rows)} without a label" in capsys.readouterr().err
    anit(monkeypatch, *ask, "--no-probabilities")
    assert all("label" not in json.loads(line) for line in answers.read_text().splitlines())
    with pytest.raises(SystemExit, match="2"):
        anit(monkeypatch, *ask, "--threshold", "None=0.5")
    assert "no label is called 'None'" in capsys.readouterr().err
    anit(monkeypatch, "eval", run.out, "--threshold", "positive=0.01")
    said = capsys.readouterr().out
    assert "by probability: micro-F1" in said and "thresholds: positive from 0.01; 0 without a label" in said
    dev.write_text(dev.read_text().replace('"temperature": ', '"temperature": 1'))
    with pytest.raises(SystemExit, match="2"):
        anit(monkeypatch, *ask)
    assert "dev.json: damaged or edited" in (refused := capsys.readouterr().err) and "--split dev" in refused
    dev.unlink()
    anit(monkeypatch, *ask)
    assert "the probabilities are not calibrated" in capsys.readouterr().err


def test_eval_gives_the_score_that_training_wrote(run: Config, monkeypatch: pytest.MonkeyPatch):
    folder = Path(run.out) / "eval"
    trained = json.loads((folder / "test.json").read_text())
    (folder / "test.json").unlink()
    anit(monkeypatch, "eval", run.out)
    again = json.loads((folder / "test.json").read_text())
    for report in (again, trained):
        del report["seconds"], report["checksum"]
    assert again == trained


def test_eval_under_a_noise_bends_every_instruction(run: Config, monkeypatch: pytest.MonkeyPatch):
    anit(monkeypatch, "eval", run.out, "--noise", "replacement", "--split", "dev")
    folder = Path(run.out) / "eval"
    raw, bent = (
        [json.loads(line) for line in (folder / f"predictions-{name}.jsonl").read_text().splitlines()]
        for name in ("dev", "dev-replacement")
    )
    assert json.loads((folder / "dev-replacement.json").read_text())["noise"] == "replacement"
    assert [row["text"] for row in bent] == [row["text"] for row in raw] and len(raw) == 6
    assert all(one["instruction"] != other["instruction"] for one, other in zip(raw, bent, strict=True))


def test_scores_of_earlier_weights_are_none_of_these(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As where training went on after somebody had evaluated, and has a better adapter since."""
    folder, adapter = Path(run.out) / "eval", Path(run.out) / "adapter"
    about = weights_about(adapter)
    (adapter / WEIGHTS_SEAL).unlink()
    seal_folder(adapter, WEIGHTS_SEAL, {"step": about["step"] + 1, "configuration": about["configuration"]})
    anit(monkeypatch, "eval", run.out, "--noise", "shuffle")
    said = capsys.readouterr()
    whose = f"step {about['step']} of configuration {about['configuration'][:8]} in float32"
    assert f"test.json is of {whose}" in said.out + said.err
    assert "gap" not in json.loads((folder / "test-shuffle.json").read_text())
    anit(monkeypatch, "export", run.out, tmp_path / "adapter")
    assert f"test.json is of step {about['step']}, the weights of {about['step'] + 1}" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "adapter" / "README.md").text
    assert "| jsonl | bent by shuffle |" in card and "| jsonl | raw |" not in card


def test_answers_of_another_run_are_none_of_these(run: Config, tmp_path: Path, monkeypatch, capsys):
    """Two runs that were asked alike, but for their seeds, and write into one folder."""
    other = run.model_copy(update={"train": run.train.model_copy(update={"seed": 7}), "out": str(tmp_path / "other")})
    train(other)
    anit(monkeypatch, "eval", other.out, "--output", tmp_path / "both")
    anit(monkeypatch, "eval", run.out, "--noise", "shuffle", "--output", tmp_path / "both")
    assert "no gap and no share of equal answers" in "".join(capsys.readouterr())
    assert "gap" not in json.loads((tmp_path / "both" / "test-shuffle.json").read_text())


def test_what_noises_do_to_known_answers_is_in_the_summary_in_eval_and_on_the_card(
    parrot: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Raw, all six texts are y, as three of them should be. Where a noise breaks the instruction the others are n."""
    summary = train(parrot)
    assert summary is not None and summary["after"]["micro_f1"] == 0.5
    capsys.readouterr()
    anit(monkeypatch, "eval", parrot.out, "--noise", "all")
    said, folder = capsys.readouterr().out, Path(parrot.out) / "eval"
    found = {}
    for noise in ("truncation", "shuffle", "insertion", "replacement", "padding", "opposite"):
        rows = [json.loads(line) for line in (folder / f"predictions-test-{noise}.jsonl").read_text().splitlines()]
        raw = ["Say good or bad." in row["instruction"] for row in rows]
        very = ["very good" in row["text"] or "very very" in row["text"] for row in rows]
        yes = [one or other for one, other in zip(raw, very, strict=True)]
        f1 = sum(one == (row["gold"] == [["positive"]]) for one, row in zip(yes, rows, strict=True)) / 6
        found[noise] = pytest.approx({"micro_f1": f1, "gap": f1 - 0.5, "consistency": sum(yes) / 6})
        report = json.loads((folder / f"test-{noise}.json").read_text())
        assert {key: report[key] for key in ("micro_f1", "gap", "consistency")} == found[noise], noise
        assert f"equal answers {sum(yes) / 6:.1%}" in said
    assert summary["robustness"] == {"shuffle": found["shuffle"]}
    assert found["shuffle"] == {"micro_f1": 5 / 6, "gap": 2 / 6, "consistency": 4 / 6} != found["padding"]
    anit(monkeypatch, "export", parrot.out, tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    (scored,) = card.data.eval_results
    assert scored.metric_value == 0.5 and card.data.library_name == "peft"
    assert "| jsonl | raw | 50.0 [" in card.text
    assert "| jsonl | bent by shuffle | 83.3 [" in card.text
    assert "| jsonl | classification | 21 | 6 | 6 |" in card.text and "## Limits" in card.text


@pytest.mark.parametrize("line, said", [('{"txt": 1}', 'expected an object with a "text"'), ("{", "not valid JSON")])
def test_predict_names_a_broken_line(line: str, said: str, run: Config, tmp_path: Path, monkeypatch, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(SystemExit) as exit:
        anit(monkeypatch, "predict", run.out, "--input", texts)
    assert exit.value.code == 2
    assert f"{texts}:2: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".parquet", ".arrow", ".txt", ".pipe.csv"])
def test_texts_in_any_table_have_the_answers_that_they_have_in_json_lines(
    ending: str, run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"text": text, "day": f"2026-11-0{day}"} for day, text in enumerate(["very good", "a, b", "bad"], start=1)]
    lines, table = tmp_path / "texts.jsonl", tmp_path / f"texts{ending}"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dated = datasets.Dataset.from_list([{**row, "day": date.fromisoformat(row["day"])} for row in rows])
    if ending in (".csv", ".tsv"):
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "day"], delimiter="," if ending == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".parquet":
        dated.to_parquet(table)
    elif ending == ".arrow":
        dated.save_to_disk(tmp_path / "saved")
        (saved,) = (tmp_path / "saved").glob("*.arrow")
        saved.rename(table)
    elif ending == ".pipe.csv":
        os.mkfifo(table)
        Thread(target=lambda: table.write_bytes(lines.read_bytes()), daemon=True).start()
    else:
        table.write_text(json.dumps(rows) if ending == ".json" else lines.read_text())
    found = []
    for source in (lines, table):
        answers = tmp_path / f"answers-of-{source.name}"
        anit(monkeypatch, "predict", run.out, "--input", source, "--output", answers)
        found.append([json.loads(line) for line in answers.read_text().splitlines()])
    assert found[0] == found[1] and len(found[0]) == 3


def test_a_text_that_is_cut_is_told_by_its_place_not_its_id(run: Config, tmp_path: Path, monkeypatch, capsys):
    rows = [{"id": 7, "text": "long " * 2000}, {"id": 7, "text": "short"}, {"id": "4", "text": "short"}]
    rows.append({"text": "long " * 2000})  # the fourth
    texts, answers = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    anit(monkeypatch, "predict", run.out, "--input", texts, "--output", answers)
    told = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row.get("text_cut", False) for row in told] == [True, False, False, True]
    assert [row.get("id") for row in told] == [7, 7, "4", None]


def test_a_threshold_scores_labels_that_are_many(run: Config, monkeypatch, capsys):
    monkeypatch.setattr("anit_ds.evaluation.labels._FEW", 1)
    report = Path(run.out) / "eval" / "test.json"
    anit(monkeypatch, "eval", run.out)
    assert "labels" not in json.loads(report.read_text())
    anit(monkeypatch, "eval", run.out, "--threshold", "positive=0.9")
    assert "labels" in json.loads(report.read_text())


def test_a_damaged_adapter_is_not_told_as_a_damaged_evaluation(run: Config, tmp_path: Path, monkeypatch, capsys):
    with (Path(run.out) / "adapter" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    (tmp_path / "texts.jsonl").write_text('{"text": "fine"}\n')
    with pytest.raises(SystemExit) as exit:
        anit(monkeypatch, "predict", run.out, "--input", tmp_path / "texts.jsonl")
    said = capsys.readouterr().err
    assert exit.value.code == 2 and "adapter_model.safetensors: damaged or edited" in said and "--split dev" not in said


def test_a_gold_label_is_not_taken_for_an_answer(run: Config, tmp_path: Path, monkeypatch, capsys):
    table, answers = tmp_path / "gold.csv", tmp_path / "answers.jsonl"
    table.write_text("text,label,cut\nvery good,negative,no\nvery bad,positive,no\n")
    anit(monkeypatch, "predict", run.out, "--input", table, "--output", answers, "--no-probabilities")
    assert "2 answers: 0 cut" in capsys.readouterr().err
    for row in map(json.loads, answers.read_text().splitlines()):
        assert row["input_label"] in ("negative", "positive") and row["input_cut"] == "no"
        assert not {"label", "cut"} & row.keys()
    again = tmp_path / "again.jsonl"
    anit(monkeypatch, "predict", run.out, "--input", answers, "--output", again)
    for first, second in zip(
        *(map(json.loads, file.read_text().splitlines()) for file in (answers, again)), strict=True
    ):
        assert (second["input_label"], second["input_cut"]) == (first["input_label"], first["input_cut"])
        assert second["input_answer"] == first["answer"] and second["label"] in ("negative", "positive")


def test_an_input_that_is_refused_costs_no_answers(run: Config, tmp_path: Path, monkeypatch, capsys):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("of last time")
    for name, said in (
        ("none.csv", "No such file"),
        ("none", "No such file"),
        ("x.parquet", "x.parquet: cannot be read"),
        ("a" * 300, "File name too long"),
        ("blank.csv", "blank.csv:3: the text is blank"),
        ("null.jsonl", "null.jsonl:1: the text is blank"),
        ("three.jsonl", "three.jsonl:1: the text is 3, not text"),
    ):
        (tmp_path / "x.parquet").write_text("no Parquet")
        (tmp_path / "blank.csv").write_text("id,text\n1,good\n2,\n")
        (tmp_path / "null.jsonl").write_text('{"text": null}\n')
        (tmp_path / "three.jsonl").write_text('{"text": 3}\n')
        with pytest.raises(SystemExit) as exit:
            anit(monkeypatch, "predict", run.out, "--input", tmp_path / name, "--output", answers)
        assert exit.value.code == 2 and said in capsys.readouterr().err
    assert answers.read_text() == "of last time"


def test_an_exported_model_is_base_and_adapter_and_is_asked_as_training_did(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    anit(monkeypatch, "export", run.out, merged, "--merge")
    anit(monkeypatch, "export", run.out, adapter)
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(run.model.name_or_path, dtype=torch.float32).eval()
    ids = torch.randint(2, 250, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        untouched = base(ids).logits
        both = peft.PeftModel.from_pretrained(base, str(adapter)).eval()(ids).logits
        assert torch.allclose(model(ids).logits, both, atol=1e-4)
    assert not torch.allclose(untouched, both, atol=1e-2)

    texts, answers = tmp_path / "texts.jsonl", tmp_path / "answers.jsonl"
    samples = RunData.load(run, RunFolder(run.out).data)["jsonl"].split("test")
    texts.write_text("".join(json.dumps({"text": s.text}) + "\n" for s in samples))
    anit(monkeypatch, "predict", run.out, "--input", texts, "--output", answers)
    expected = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    # As a server with chat messages does: the folder alone, its template, its settings.
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    for sample, answer in zip(samples, expected, strict=True):
        asked = [{"role": "user", "content": sample.text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True).lstrip().partition("\n")[0].strip() == answer
    assert ModelCard.load(merged / "README.md").data.library_name == "transformers"
    prompt = json.loads((adapter / "prompt.json").read_text())["jsonl"]
    assert prompt["prompt"].replace("{text}", samples[0].text) == render_prompt(samples[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_loses_the_adapter_is_refused(
    dtype: str, run: Config, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    config = run
    if dtype == "bfloat16":
        halves = {"model.dtype": dtype, "train.epochs": 2, "train.lr": 1e-2, "eval.test": False}
        config = make_config("halves", **halves)
        train(config)
    anit(monkeypatch, "export", config.out, tmp_path / "merged", "--merge")
    assert "merged model written" in capsys.readouterr().out
    monkeypatch.setattr(peft.PeftModel, "merge_and_unload", lambda model: model.unload(), raising=False)
    with pytest.raises(SystemExit, match="^1$"):
        anit(monkeypatch, "export", config.out, tmp_path / "lost", "--merge")
    assert "anit: the merged logits differ from base + adapter's" in capsys.readouterr().err
    assert not (tmp_path / "lost").exists()
