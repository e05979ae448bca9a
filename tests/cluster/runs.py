"""A run of the tiny model, real launches of it, and a look at what they leave behind.

Every process that a launch starts inherits ANIT_TEST_MARK, through ssh and SLURM too, so none can hide.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
STEPS = 8


class Launches:
    """Starts commands under one mark and finds the processes that carry it."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            "ANIT_TEST_MARK": self.mark,
            "FORWARD": "ANIT_TEST_MARK",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def start(self, *command: object, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=REPOSITORY,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: object, timeout: float = 600, **more: str) -> tuple[int, str]:
        """(exit code, output) of a command that must end by itself."""
        process = self.start(*command, **more)
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output

    def processes(self, **variables: str) -> dict[int, str]:
        """Process id -> command line of all that carry the mark and these environment variables."""
        wanted = {f"ANIT_TEST_MARK={self.mark}", *(f"{name}={value}" for name, value in variables.items())}
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue  # it ended while we looked
            if wanted <= set(environment) and command and int(folder.name) != os.getpid():
                found[int(folder.name)] = command
        return found

    def rank(self, number: int, variable: str = "RANK") -> int:
        """The process id of a rank that is training."""
        found = self.processes(**{variable: str(number)})
        return next(pid for pid, command in found.items() if "python" in command and "anit train" in command)

    def left_over(self, within: float = 20.0) -> dict[int, str]:
        """What is still there when everything had `within` seconds to go."""
        until = time.monotonic() + within
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        return found


class TinyRun:
    """A configuration of the tiny model and the folder it trains into."""

    def __init__(self, config: Path, out: Path) -> None:
        self.config, self.out = config, out

    @property
    def finished(self) -> bool:
        return (self.out / "summary.json").exists()

    def await_checkpoint(self, step: int, timeout: float = 240) -> None:
        until = time.monotonic() + timeout
        while not any(int(p.name.removeprefix("step-")) >= step for p in self.out.glob("checkpoints/step-*")):
            assert time.monotonic() < until, f"no checkpoint of step {step} in {timeout:g} s"
            time.sleep(0.05)

    def await_step(self, step: int, timeout: float = 240) -> None:
        until = time.monotonic() + timeout
        while step not in self.steps():
            assert time.monotonic() < until, f"step {step} not reached in {timeout:g} s"
            time.sleep(0.05)

    def steps(self) -> list[int]:
        """The optimizer steps in metrics.jsonl, in order."""
        metrics = self.out / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return [line["step"] for line in lines if "lr" in line]

    def slurm_log(self) -> str:
        return (self.out / "slurm.out").read_text()

    def difference(self, other: TinyRun) -> float:
        """Largest difference between two final adapters."""
        one, two = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (self, other))
        assert one.keys() == two.keys() and one, "the adapters hold different weights"
        return max(float((one[name] - two[name]).abs().max()) for name in one)


def make_run(folder: Path, name: str, tiny_folder: Path, sentences: Path, **train: Any) -> TinyRun:
    """A run of the model in `tiny_folder` on `sentences`, with changes to its `train` section."""
    content = {
        "model": {"name_or_path": str(tiny_folder), "dtype": "float32"},
        "data": {"dataset": "sst2", "path": str(sentences), "instructions": "concise"},
        "lora": {"r": 4, "dropout": 0.0},
        "train": {"global_batch": 8, "micro_batch": 2, "max_steps": STEPS, "lr": 1e-3, "adam_eps": 1e-6,
                  "checkpoint_every": 2, "log_every": 1, "rank_timeout": 60, **train},
        "eval": {"every": None, "test": False},
        "out": str(folder / name),
    }  # fmt: skip
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(content))
    return TinyRun(config, folder / name)


def write_sentences(folder: Path) -> Path:
    """A train and a dev split in SST-2's format."""
    for split, count in (("train", 64), ("dev", 4)):
        rows = [f"a {('dull', 'bright')[i % 2]} film of {i} scenes\t{i % 2}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder
