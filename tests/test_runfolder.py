"""A run's folder by itself: moved, without its data's source, read-only, damaged, and asked for by two at once."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anit_ds.config import Config
from anit_ds.configfile import load_config, validate
from anit_ds.folder_lock import only_writer
from anit_ds.sealed import read_sealed, write_sealed
from anit_ds.training import train

ANSWER = "person: Augusta Ada King; place: London"
INSTRUCTIONS = """
task: ner
question: Which names occur?
format: "type: span; type: span"
labels: {person: person, place: place}
concise: [Find the names.]
"""
Anit = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, scored on dev after two and four, in work/run; its data is work/names."""
    work = tmp_path_factory.mktemp("work")
    (work / "names").mkdir()
    row = {"text": "Augusta Ada King lived in London .", "items": [["person", "Augusta Ada King"], ["place", "London"]]}
    for split, size in (("train", 8), ("dev", 2), ("test", 2)):
        (work / "names" / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * size)
    (work / "names.yaml").write_text(INSTRUCTIONS)
    train(validate({
        "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
        "data": {"dataset": "jsonl", "path": str(work / "names"), "instructions": "concise",
                 "instructions_file": str(work / "names.yaml")},
        "method": {"name": "noisy_sft"}, "lora": {"r": 4, "dropout": 0.0},
        "train": {"epochs": 2, "global_batch": 4, "micro_batch": 4, "lr": 1e-2, "checkpoint_every": 1, "keep": 4,
                  "log_every": 1},
        "out": str(work / "run"),
    }, source="the test"))  # fmt: skip
    return work / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def unfinished(run: Path) -> Path:
    """The run as a kill after its third step leaves it."""
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-000004")
    return run


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(run: Path) -> str:
    return content(run / "adapter")["adapter_model.safetensors"]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path: Path, place: int = -2) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x40
    path.write_bytes(raw)


def asked(anit: Anit, run: Path, results: Path) -> dict[str, str]:
    """The bytes that predict, eval and export make of a run."""
    results.mkdir()
    (results / "in.jsonl").write_text('{"text": "Ada King saw Rome ."}\n' * 70)
    anit("predict", run, "--input", results / "in.jsonl", "--output", results / "answers.jsonl")
    anit("eval", run, "--output", results / "eval")
    anit("export", run, results / "adapter")
    report = json.loads((results / "eval" / "test.json").read_text())
    del report["seconds"], report["checksum"]
    (results / "eval" / "test.json").write_text(json.dumps(report))
    return content(results)


def test_it_is_all_that_predict_eval_and_export_need(
    trained: Path, anit: Anit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit = json.loads((trained / "run.json").read_text())["answer_limits"]["jsonl"]
    assert limit == len(f" {ANSWER}") + 10, "a byte is a token here; a quarter more"
    first = asked(anit, trained, tmp_path / "first")
    lengths = {len(json.loads(line)["answer"]) for line in (tmp_path / "first/answers.jsonl").open()}
    assert max(lengths) > 9
    moved = shutil.move(shutil.copytree(trained, tmp_path / "copied"), tmp_path / "moved")
    before = content(moved)
    hidden = trained.parent.rename(trained.parent.with_name("hidden"))
    monkeypatch.chdir(tmp_path)
    try:
        assert asked(anit, Path("moved"), tmp_path / "second") == first
    finally:
        hidden.rename(trained.parent)
    assert content(moved) == before, "a reader writes nothing but evaluations"


def test_a_folder_given_as_a_configuration_is_that_run(run: Path):
    assert load_config(run).out == str(run)
    assert load_config(run, ["out=elsewhere"]).out == "elsewhere"


def test_scores_are_shown_where_they_cannot_be_written(run: Path, anit: Anit):
    shutil.rmtree(run / "eval")
    (run / "eval").write_text("a file where the folder should be")
    said = anit("eval", run)
    assert "micro-F1" in said and "not written: " in said and "--output DIR" in said


def test_all_noises_without_opposites(run: Path, anit: Anit):
    said = anit("eval", run, "--noise", "all", "--split", "dev")
    written = {path.stem for path in (run / "eval").glob("dev-*.json")}
    assert written == {f"dev-{noise}" for noise in ("truncation", "shuffle", "insertion", "replacement")}
    for noise in ("padding", "opposite"):  # no other text to pad with, and no opposites
        assert f"dev-{noise}:\nnot scored: noise.kind {noise}" in said
    assert said.count("equal answers") == 4


def test_data_that_are_gone_are_no_other_configuration(unfinished: Path, anit: Anit, tmp_path: Path, monkeypatch):
    """As where they were moved, or where the command is given in another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = anit("train", unfinished, "data.path=names", code=2)
    assert "data.path: there is no names here; the run in this folder began with /" in said and "--fresh" not in said


def test_data_that_changed_refuse_to_go_on(unfinished: Path, trained: Path, anit: Anit):
    source = trained.parent / "names" / "train.jsonl"
    text, before = source.read_text(), content(unfinished / "data")
    source.write_text(text + text.split("\n")[0] + "\n")
    try:
        for command in ("train", "data"):
            said = anit(command, unfinished, code=2)
            assert f"{source}: is not what the run in this folder began with" in said and "--fresh" in said
    finally:
        source.write_text(text)
    assert content(unfinished / "data") == before


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"text": "caf\xe9"}', ":2: not UTF-8 text"),
        (b'{"text": "\\ud83d"}', ":2: '\\ud83d' is half a character"),
        (b"[1]", ':2: expected an object with a "text"'),
    ],
)
def test_predict_reads_lines_as_json_has_them(line: bytes, said: str, run: Path, anit: Anit, tmp_path: Path):
    sound = tmp_path / "in.jsonl"
    sound.write_bytes('\ufeff{"text": "one\u2028two\u0085three"}\r\n\n{"text": "four"}'.encode())
    rows = [json.loads(row) for row in anit("predict", run, "--input", sound).split("\n") if row.startswith("{")]
    assert [row["text"] for row in rows] == ["one\u2028two\u0085three", "four"]
    broken, kept = tmp_path / "broken.jsonl", tmp_path / "out.jsonl"
    broken.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    kept.write_text("what was there before")
    assert f"{broken}{said}" in anit("predict", run, "--input", broken, "--output", kept, code=2)
    assert kept.read_text() == "what was there before"
    assert "is the input" in anit("predict", run, "--input", sound, "--output", sound, code=2)


def test_a_limit_is_told(run: Path, anit: Anit, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"text": "Ada King saw Rome ."}\n')
    said = anit("predict", run, "--input", tmp_path / "in.jsonl", "--max-new-tokens", 1)
    assert json.loads(said.split("\n")[0])["cut"] is True and "1 answers: 1 cut at the limit" in said
    long = json.dumps({"text": "Ada King saw Rome . " * 500})
    (tmp_path / "long.jsonl").write_text(f'{long}\n{{"text": "Ada King saw Rome ."}}\n')
    said = anit("predict", run, "--input", tmp_path / "long.jsonl")
    assert [json.loads(row).get("text_cut") for row in said.split("\n")[:2]] == [True, None]
    assert "1 texts lost their end, which does not fit into data.max_length" in said


DAMAGES: dict[str, Callable[[Path], object]] = {
    "an edited configuration": lambda run: edit(run / "config.yaml", "max_length: 512", "max_length: 513"),
    "a flipped record": lambda run: edit(run / "run.json", '"jsonl": 5', '"jsonl": 4'),
    "a flipped test sample": lambda run: edit(run / "data" / "test.jsonl", "Augusta", "Augusta".swapcase()),
    "an edited manifest": lambda run: edit(run / "data" / "manifest.json", "Which names", "What names"),
    "a flipped adapter": lambda run: flip(run / "adapter" / "adapter_model.safetensors"),
    "a short adapter": lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"1234"),
    "no weights": lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(),
    "half an adapter_config": lambda run: (run / "adapter" / "adapter_config.json").write_text('{"r": 4'),
}


def test_constrained_answers_are_valid_and_their_items_have_scores(run: Path, anit: Anit, tmp_path: Path):
    said = anit("eval", run, "--constrained")
    assert "jsonl test: micro-F1" in said and "jsonl test-constrained: micro-F1" in said
    report = json.loads((run / "eval" / "test-constrained.json").read_text())
    assert report["constrained"] and report["parse_failures"] == 0 and report["nothing"] is None
    for threshold, times in ((1e-300, report["n"]), (1, 0)):
        assert f"--threshold None={threshold:g}: " in anit("eval", run, "--threshold", f"None={threshold}")
        assert json.loads((run / "eval" / "test-constrained.json").read_text())["nothing"]["said"] == times
    text = "Ada King saw Rome ."
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": text}) + "\n")
    ask = ("predict", run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    rows = []
    for more in (["--constrained"], ["--min-score", "1"]):
        anit(*ask, *more)
        rows.append(json.loads((tmp_path / "out.jsonl").read_text()))
    assert len(rows[0]["items"]) == len(rows[0]["scores"]) and all(0 < score <= 1 for score in rows[0]["scores"])
    assert all(span in text for _, span in rows[0]["items"]) and "malformed" not in rows[0]
    assert len(rows[1]["items"]) <= len(rows[0]["items"]) and set(rows[1]["scores"]) <= {1.0}
    anit(*ask, "--threshold", "None=1e-300")
    said = json.loads((tmp_path / "out.jsonl").read_text())
    assert (said["answer"], said["items"], said["scores"]) == ("None", [], [])
    anit(*ask, "--threshold", "None=1")
    said = json.loads((tmp_path / "out.jsonl").read_text())
    assert said["answer"] != "None" and said["none"] == rows[0]["none"] and len(said["scores"]) == len(said["items"])


def test_the_threshold_for_none_that_dev_finds_is_used_elsewhere(tiny_folder: Path, anit: Anit, tmp_path: Path):
    """What an untrained model says of half the texts is made the gold of dev, and `None` that of the others."""
    texts = ["Ada .", "Bo in Bern .", "It rains", "Cy and Di", "Rome , Oslo", "no one here"]
    (tmp_path / "names").mkdir()
    (tmp_path / "names.yaml").write_text(INSTRUCTIONS)

    def trained(name: str, dev: list[dict]) -> Path:
        for split, rows in (("train", [{"text": "Ada", "items": []}] * 4), ("dev", dev), ("test", dev)):
            (tmp_path / "names" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train(validate({
            "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
            "data": {"dataset": "jsonl", "path": str(tmp_path / "names"), "instructions": "concise",
                     "instructions_file": str(tmp_path / "names.yaml")},
            "method": {"name": "sft"}, "lora": {"r": 4},
            "train": {"max_steps": 1, "global_batch": 4, "micro_batch": 4, "lr": 1e-9},
            "eval": {"test": False, "max_new_tokens": 60}, "out": str(tmp_path / name),
        }, source="the test"))  # fmt: skip
        return tmp_path / name

    def answers(run: Path, threshold: str) -> list[dict]:
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        said = anit("predict", run, "--input", tmp_path / "in.jsonl", "--threshold", f"None={threshold}")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    said = answers(trained("before", [{"text": text, "items": []} for text in texts]), "1")
    assert all(row["items"] for row in said)
    likely = sorted(row["none"] for row in said)
    gold = [row["items"] if row["none"] < likely[3] else [] for row in said]
    run = trained("after", [{"text": text, "items": items} for text, items in zip(texts, gold, strict=True)])
    said = anit("eval", run, "--threshold", "None=dev", code=2)
    assert f"no threshold has been fitted on dev; `anit eval {run} --split dev --constrained` does it" in said
    printed = anit("eval", run, "--split", "dev", "--constrained")
    found = json.loads((run / "eval" / "dev-constrained.json").read_text())["nothing"]
    assert found["fitted"] and found["micro_f1"] == 1 and found["said"] == 3
    threshold = f"{found['threshold']:.15g}"
    assert f"--threshold None={threshold}: micro-F1 1.0000" in printed and "the best here" in printed
    assert [row["items"] for row in answers(run, threshold)] == gold
    assert answers(run, "dev") == answers(run, threshold)
    assert "leave it out" in anit("eval", run, "--split", "dev", "--threshold", "None=dev", code=2)
    printed = anit("eval", run, "--threshold", f"None={threshold}")
    assert "micro-F1 1.0000" in printed and "the best here" not in printed
    rows = [json.loads(line) for line in (run / "eval" / "predictions-test-constrained.jsonl").open()]
    assert [row["at_threshold"] for row in rows] == gold


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_and_not_asked(damage: str, run: Path, anit: Anit):
    DAMAGES[damage](run)
    said = anit("eval", run, code=2).strip().split("\n")[-1]
    assert said.startswith(f"anit: {run}") and ("damaged or edited" in said or "cannot read it" in said)


def test_a_damaged_evaluation_costs_the_comparison_with_it_alone(run: Path, anit: Anit):
    flip(run / "eval" / "predictions-test.jsonl", 20)
    said = anit("eval", run, "--noise", "shuffle")
    assert "micro-F1" in said and "no gap and no share of equal answers: " in said


LOSSES: dict[str, Callable[[Path], object]] = {
    "a flipped adapter": lambda run: flip(run / "adapter" / "adapter_model.safetensors"),
    "no adapter": lambda run: shutil.rmtree(run / "adapter"),
    "an edited step": lambda run: edit(run / "checkpoints/step-000003/state.json", '"step": 3', '"step": 1'),
    "state of another kind": lambda run: (run / "checkpoints/step-000003/state.json").write_text("[1]"),
    "an edited beta": lambda run: edit(run / "data" / "manifest.json", '"beta": ', '"beta": 0.9'),
    "no record": lambda run: (run / "run.json").write_text(""),
    "a torn record of steps": lambda run: edit(run / "metrics.jsonl", "{", "5\nx"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_an_unfinished_run_gets_over_what_it_lost(loss: str, unfinished: Path, trained: Path, anit: Anit):
    shutil.copytree(unfinished / "checkpoints" / "step-000002", unfinished / "checkpoints" / "step-best")
    LOSSES[loss](unfinished)
    anit("train", unfinished)
    assert weights(unfinished) == weights(trained)
    assert (unfinished / "checkpoints" / "step-best").is_dir()
    steps = [json.loads(line)["step"] for line in (unfinished / "metrics.jsonl").open() if '"lr"' in line]
    assert steps == ([2, 3, 4] if loss == "a torn record of steps" else [1, 2, 3, 4])


def test_a_damaged_summary_is_made_again(run: Path, trained: Path, anit: Anit):
    expected = json.loads((trained / "summary.json").read_text())
    edit(run / "summary.json", '"micro_f1": 0', '"micro_f1": 1')
    shutil.copytree(run, run.with_name("bare"))
    shutil.rmtree(run.with_name("bare") / "checkpoints")
    assert "only --fresh makes it again" in anit("train", run.with_name("bare"), code=2)
    anit("train", run)
    again = json.loads((run / "summary.json").read_text())
    assert (again["dev"], again["after"]["micro_f1"]) == (expected["dev"], expected["after"]["micro_f1"])


HOLD = """
import sys, time
from pathlib import Path
from anit_ds.folder_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("train", "data.path=nowhere.csv"),
        ("train", "model.name_or_path=nowhere"),
        ("train", "deepspeed=nowhere.json"),
        ("data", "data.instructions=detailed"),
    ],
)
def test_a_fresh_start_that_is_refused_costs_nothing(run: Path, anit: Anit, command: str, wrong: str):
    before = files(run)
    anit(command, run, "--fresh", wrong, code=2)
    assert files(run) == before and "micro-F1" in anit("eval", run)
    anit("data", run, "--fresh")
    assert not (run / "summary.json").exists() and not (run / ".replaced").exists()


def test_a_fresh_start_that_was_killed_leaves_one_run_whole(run: Path, anit: Anit):
    """Before it was accepted, the earlier one; while the earlier one was being deleted, the new one."""
    before = files(run)
    (run / ".replaced").mkdir()
    for name in ("adapter", "eval", "summary.json"):
        (run / name).rename(run / ".replaced" / name)
    (run / "eval").mkdir()
    assert "is finished" in anit("train", run)
    assert {name: content for name, content in files(run).items() if name != "config.yaml"} == {
        name: content for name, content in before.items() if name != "config.yaml"
    }
    (run / ".replaced.gone" / "adapter").mkdir(parents=True)
    assert "is finished" in anit("train", run)
    assert not (run / ".replaced.gone").exists() and (run / "adapter" / "adapter_config.json").is_file()


def files(run: Path) -> dict[str, bytes]:
    """What lies there, logs aside."""
    there = (path for path in run.rglob("*") if path.is_file() and "log" not in path.name and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in there}


def test_one_writer(run: Path, anit: Anit):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        for command in ("train", "data"):
            said = anit(command, run, "--fresh", code=2)
            assert f"process {holder.pid} on {platform.node()} is writing there" in said
        assert (run / "summary.json").is_file() and "micro-F1" in anit("eval", run)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_writer(run):
        pass


def test_paths_are_written_from_the_root(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anit: Anit):
    config: Config = load_config(trained)
    monkeypatch.chdir(trained.parent)
    given = config.model_dump(mode="json", by_alias=True) | {"out": str(tmp_path / "relative")}
    given["data"] |= {"path": "names", "instructions_file": "names.yaml"}
    (tmp_path / "relative.yaml").write_text(validate(given, source="the test").to_yaml())
    for _ in range(2):  # the second time beside what the first has written
        anit("data", tmp_path / "relative.yaml")
    written = load_config(tmp_path / "relative")
    assert written.data == config.data


@pytest.mark.parametrize("test", [True, False])
def test_a_report_on_dev_that_is_not_the_best_adapter_s_is_made_again(
    test: bool, trained: Path, run: Path, anit: Anit, tmp_path: Path
):
    """Damaged; and another's: a kill before the checkpoint takes the adapter back, and not the report."""
    if not test:
        run = tmp_path / "untested"
        anit("train", trained, "eval.test=false", f"out={run}")
    (run / "summary.json").unlink()
    dev = run / "eval" / "dev.json"
    sound = {key: value for key, value in read_sealed(dev).items() if key != "seconds"}
    for spoil in (
        lambda: dev.write_text("{}"),
        lambda: write_sealed(dev, {**read_sealed(dev), "micro_f1": 2.0}),
        dev.unlink,
    ):
        spoil()
        anit("train", run)
        assert {key: value for key, value in read_sealed(dev).items() if key != "seconds"} == sound
        (run / "summary.json").unlink()


def test_a_damaged_report_on_dev_is_nothing_to_answers_without_labels(run: Path, anit: Anit, tmp_path: Path):
    (run / "eval" / "dev.json").write_text("{}")
    anit("eval", run)
    texts = tmp_path / "in.jsonl"
    texts.write_text('{"text": "four"}\n')
    anit("predict", run, "--input", texts)


def test_labels_in_another_order_are_other_data(unfinished: Path, trained: Path, anit: Anit):
    """The prompt lists them in the order of the file."""
    source = trained.parent / "names.yaml"
    text = source.read_text()
    source.write_text(text.replace("{person: person, place: place}", "{place: place, person: person}"))
    try:
        said = anit("train", unfinished, code=2)
        assert f"{source}: is not what the run in this folder began with" in said
    finally:
        source.write_text(text)
    anit("train", unfinished)
