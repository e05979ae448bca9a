"""One small run, killed at any of its file-system events or with a bit flipped anywhere in its folder, many times.

    python tests/anywhere.py FOLDER kill 200      at 200 events, spread evenly over all; kill 200,57: from the 57th on
    python tests/anywhere.py FOLDER flip 100      at 100 random places of the unfinished and of the finished run
    python tests/anywhere.py FOLDER kill 2 flip 2

Each try is a fork of this process, which has imported everything, so it costs a second or two. One JSON line a try says
what came of it; tests/test_anywhere.py says what may.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from anit_ds.commands.cli import main
from anit_ds.files import read_json_lines
from anit_ds.tiny import save_tiny
from anit_ds.training import train  # noqa: F401 (imported before the first fork)

STEPS = 6
_INSTRUCTIONS = """
task: classification
question: What is the sentiment?
format: one label
labels: {positive: positive, negative: negative}
concise: [Say whether the text is good or bad., Decide if this is praise or blame., Guess if the writer is pleased.]
"""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def prepare(folder: Path) -> None:
    """A tiny model, 21 training, 6 dev and 6 test reviews, and a configuration of six steps, each of them saved."""
    save_tiny(folder / "tiny")
    (folder / "reviews").mkdir()
    for split, size in (("train", 21), ("dev", 6), ("test", 6)):
        rows = [{"text": f"{split} {n} very good", "label": ("positive", "negative")[n % 2]} for n in range(size)]
        (folder / "reviews" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reviews.yaml").write_text(_INSTRUCTIONS)
    (folder / "c.yaml").write_text(yaml.safe_dump({
        "model": {"name_or_path": "tiny", "dtype": "float32"},
        "data": {"dataset": "jsonl", "path": "reviews", "instructions": "concise", "instructions_file": "reviews.yaml"},
        "noise": {"kind": "replacement", "resample": "epoch"}, "lora": {"r": 4, "dropout": 0.1},
        "train": {"epochs": 2, "global_batch": 8, "micro_batch": 4, "lr": 1e-2, "checkpoint_every": 1, "log_every": 1},
        "eval": {"max_new_tokens": 4}, "out": "run",
    }))  # fmt: skip


def forked(*arguments: str, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """`anit ARGUMENTS` in a fork: how it ended (a signal as its negative number), and the end of what it said."""
    said = Path("said.txt")
    if (child := os.fork()) == 0:
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # tqdm's own lock is a semaphore that all forks share: a child that is killed while it holds it stops the rest.
        tqdm.set_lock(threading.RLock())
        sys.argv = ["anit", *arguments]
        before()
        code = 1
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0
        except BaseException:
            traceback.print_exc()  # a fork that ends below would say nothing
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text(errors="replace")[-2000:]


def at_event(number: int | None, counted: Path) -> None:
    """SIGKILL before the `number`-th change of a file under run/; None: none, and their count is kept in `counted`."""
    seen = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str | bytes | os.PathLike) and bool(flags & _WRITES)
        else:
            path, changes = (arguments or [""])[0], event in _CHANGES
        # shutil.rmtree names what it removes by the descriptor of its folder.
        by_descriptor = changes and isinstance(arguments[-1], int) and event != "open" and arguments[-1] >= 0
        if changes and (by_descriptor or Path(os.fsdecode(path)).absolute().is_relative_to(Path("run").absolute())):
            seen += 1
            if number is None:
                descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT)
                os.pwrite(descriptor, f"{seen:06d}".encode(), 0)
                os.close(descriptor)
            elif seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def numbers(run: Path) -> dict[str, str]:
    """Everything of a finished run that a number is read from, as checksums; a run's times and logs are left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        decides = name.startswith(("adapter/", "data/", "eval/predictions", "checkpoints/"))
        if decides and path.suffix in (".jsonl", ".safetensors"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((run / "eval").glob("*.json")):
        report = json.loads(path.read_text())
        found[f"eval/{path.name}"] = str((report["micro_f1"], report["nll"], report["n"]))
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if "loss/clean" in line]
    found["metrics.jsonl"] = str([(line["step"], line["loss/clean"]) for line in lines])
    summary = json.loads((run / "summary.json").read_text())
    found["summary.json"] = str((summary["dev"], summary["after"]["micro_f1"]))
    return found


def names(run: Path) -> set[str]:
    """The files of a run but TensorBoard's, which are named by the time of their start."""
    return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.parent.name != "tensorboard"}


class Undisturbed(NamedTuple):
    """The numbers of the run in finished/, its files, and how often it changes one."""

    numbers: dict[str, str]
    files: set[str]
    events: int


def trained() -> Undisturbed:
    code, said = forked("train", "c.yaml", before=lambda: at_event(None, Path("events.txt").absolute()))
    assert code == 0, said
    run = Path("run")
    made = Undisturbed(numbers(run), names(run), int(Path("events.txt").read_text()))
    run.rename("finished")
    return made


def kill(whole: Undisturbed, tries: int, first: int = 1) -> None:
    expected, files, events = whole
    print(json.dumps({"events": events}), flush=True)
    # Each in the middle of its share: at the very ends there is nothing yet, or nothing left to resume.
    places = {1 + (2 * n + 1) * (events - 1) // (2 * tries) for n in range(tries)}
    for place in sorted(place for place in places if place >= first):
        shutil.rmtree("run", ignore_errors=True)
        ended, _ = forked("train", "c.yaml", before=lambda place=place: at_event(place, Path("unused")))
        code, said = forked("train", "c.yaml")
        same = code == 0 and numbers(Path("run")) == expected
        left = names(Path("run"))
        told = {"event": place, "killed": ended == -signal.SIGKILL, "exit": code, "same": same}
        told |= {"litter": sorted(left - files), "missing": sorted(files - left)}
        print(json.dumps(told if same else {**told, "said": said[-500:]}), flush=True)


def flip(whole: Undisturbed, tries: int) -> None:
    """`train` is called again, on the finished run or on one that a kill left after step 4; then it is asked."""
    expected = whole.numbers
    Path("in.jsonl").write_text('{"text": "test 1 very good"}\n' * 3)
    shutil.copytree("finished", "unfinished")
    (Path("unfinished") / "summary.json").unlink()
    for step in (5, 6):
        shutil.rmtree(f"unfinished/checkpoints/step-{step:06d}", ignore_errors=True)
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree("finished", "run")
    right = _asked()
    rng = random.Random(19)  # it begins with the finished run's adapter
    for number in range(tries):
        state = ("finished", "unfinished")[number % 2]
        shutil.rmtree("run")
        shutil.copytree(state, "run")
        path, place = _flipped(Path("run"), rng)
        code, said = forked("train", "c.yaml")
        outcome = "refused" if code == 2 else "failed" if code else "same"
        if code == 0:
            found = numbers(Path("run")) if state == "unfinished" else expected
            if differ := [name for name in expected if found.get(name) != expected[name]]:
                outcome = f"another number: {', '.join(differ)}"
            elif (answers := _asked()) != right:
                refused = all(a in (2, b) for a, b in zip(answers, right, strict=True))
                outcome = "refused" if refused else "another answer"
        told = {"state": state, "file": str(path), "bit": place, "outcome": outcome}
        print(json.dumps(told if outcome == "same" else {**told, "said": said[-300:]}), flush=True)


def _asked() -> Sequence[object]:
    """What eval, predict and export say of run/: their exit code where they refuse, else the bytes."""
    shutil.rmtree("asked", ignore_errors=True)
    calls = {
        "asked/predictions-dev.jsonl": ("eval", "run", "--split", "dev", "--output", "asked"),
        "asked/predictions-test.jsonl": ("eval", "run", "--output", "asked"),
        "asked/out.jsonl": ("predict", "run", "--input", "in.jsonl", "--output", "asked/out.jsonl"),
        "asked/adapter/adapter_model.safetensors": ("export", "run", "asked/adapter"),
    }
    Path("asked").mkdir()
    return [forked(*call)[0] or Path(made).read_bytes() for made, call in calls.items()]


def _flipped(run: Path, rng: random.Random) -> tuple[Path, int]:
    """One bit of a file drawn at random, so that small files are hit as often as large ones."""
    path = rng.choice([p for p in sorted(run.rglob("*")) if p.is_file() and p.stat().st_size])
    raw, place = bytearray(path.read_bytes()), rng.randrange(8 * path.stat().st_size)
    raw[place // 8] ^= 1 << place % 8
    path.write_bytes(raw)
    return path.relative_to(run), place


if __name__ == "__main__":
    folder, *asked = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    prepare(Path(folder))
    os.chdir(folder)
    undisturbed = trained()
    for what, numbers_given in zip(asked[::2], asked[1::2], strict=True):
        {"kill": kill, "flip": flip}[what](undisturbed, *map(int, numbers_given.split(",")))
