"""What a comparison keeps of its cells.

OUT/cells/NAME.json holds a finished cell: its record, what answers.py keeps of its answers, and its dev curve.
OUT/results.json holds the records of all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anit_ds.data.noise.manifest import MANIFEST
from anit_ds.errors import InputError
from anit_ds.experiments.answers import KEPT, kept_answers
from anit_ds.experiments.cells import Cell, Chosen
from anit_ds.experiments.grid import CompareConfig
from anit_ds.files import read_json_lines, write_json
from anit_ds.identity import identity, same_result
from anit_ds.runfolder import RunFolder, versions
from anit_ds.sealed import Damaged, read_sealed, write_sealed

Result = dict[str, Any]
"""One cell's record in results.json; `status` is "done" or "failed"."""


class Cells:
    """The results of a comparison's cells in its folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / "cells"

    def read(self, cell: Cell) -> Result | None:
        """What is on record for this cell, a failure too; answers and dev curve included."""
        file = self.folder / f"{cell.name}.json"
        if not file.is_file():
            return None
        try:
            content: Result = read_sealed(file)
        except Damaged:
            return None  # the run's folder has it still, so it costs no training
        # Where a source's run lies is no part of a result.
        recorded = content["config"]
        if cell.config.lora is not None:  # the source's hash stands for where it lies
            recorded = {**recorded, "lora.init_from": cell.config.lora.init_from}
        if content["config_hash"] != cell.hash or not same_result(recorded, cell.config):
            return None
        return {**cell.axes(), **content}  # the record of an earlier version lacks axes that came since

    def finished(self, cell: Cell) -> Result | None:
        """The result of a cell that is done, or None."""
        result = self.read(cell)
        return result if result is not None and result["status"] == "done" else None

    def keep(self, cell: Cell, seconds: float, exit_code: int | None = 0) -> Result:
        """Turn a cell's run folder into its result and write it; the run's checkpoints are let go.

        What a training that failed finds in its folder is another run's.
        """
        run = RunFolder(cell.config.out)
        if exit_code or not run.summary.is_file():
            return self.keep_failure(cell, _last_words(run.path))
        try:
            result = _result(cell, run, self.out)
            result["seconds"] = round(max(seconds, result["train_seconds"]), 1)  # of a resumed one, not its end alone
        except Damaged as error:
            return self.keep_failure(cell, str(error))
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        write_sealed(self.folder / f"{cell.name}.json", result)
        return result

    def keep_failure(self, cell: Cell, error: str) -> Result:
        result = {**cell.axes(), **_identity_of(cell), "status": "failed", "error": error}
        write_sealed(self.folder / f"{cell.name}.json", result)
        return result


class Records:
    """OUT/results.json: the record of every cell that has one, in the grid's order; written anew as each cell ends."""

    def __init__(self, config: CompareConfig, grid: Sequence[Cell], results: Cells, chosen: Chosen) -> None:
        self._config, self._grid, self._results, self._chosen = config, grid, results, chosen
        # Read once: what is kept of a large grid's answers is hundreds of megabytes, and this file has none.
        self._records = {cell.name: _without_answers(result) for cell, result in self._read()}

    def _read(self) -> Iterator[tuple[Cell, Result]]:
        for cell in self._grid:
            if (result := self._results.read(cell)) is not None:
                yield cell, self._with_choice(cell, result)

    def _with_choice(self, cell: Cell, result: Result) -> Result:
        return {**result, "tuned": self._chosen.get(cell.chosen_by)}

    def add(self, cell: Cell, result: Result) -> None:
        self._records[cell.name] = _without_answers(self._with_choice(cell, result))
        self.write()

    def write(self) -> None:
        made = [self._records[cell.name] for cell in self._grid if cell.name in self._records]
        about = {"title": self._config.title, "versions": versions(), "missing": len(self._grid) - len(made)}
        write_json(self._results.out / "results.json", {**about, "cells": made})

    def read_whole(self) -> list[Result]:
        """The records with what is kept of their answers, and their dev curves.

        Raises InputError where two of them are of other texts, files, instructions or weights, though their
        configurations name the same ones: they have changed between two starts.
        """
        made = [result for _, result in self._read()]
        seen: dict[tuple[Any, ...], tuple[str, Result]] = {}
        for result in made:
            for place, what, hashed in _began_with(result):
                known, first = seen.setdefault(place, (hashed, result))
                if known != hashed:
                    file = self._results.folder / f"{Path(first['run']).name}.json"
                    raise InputError(
                        f"{file}: is of {what} than {Path(result['run']).name}.json beside it, so {place[1]} has "
                        "changed since; take the cells of one of the two away, or choose another out"
                    )
        return made


def _began_with(result: Result) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """Of all that a result follows from and its configuration only names: (what it is of, in words, its hash). Cells of
    earlier versions have some of it alone."""
    dataset = result["dataset"]
    for split, hashed in result.get("data", {}).items():
        drawn = (result[axis] for axis in ("seed", "fraction", "max_train"))
        yield ("texts", dataset, split, *drawn), f"other {split} texts", hashed
    for name, hashed in result.get("sources", {}).items():
        yield ("source", dataset, name), f"another file for {name}", hashed
    for name, hashed in result.get("instructions_hash", {}).items():
        yield ("instructions", name, result["instructions"]), "other instructions", hashed
    for name, of in result.get("confusion", {}).items():
        yield (
            ("labels", name, result["instructions"]),
            "other labels, or the same in another order,",
            repr(of["labels"]),
        )
    if model := result.get("model_hash"):
        yield ("weights", result["model"]), "another base model", model


def _without_answers(result: Result) -> Result:
    return {key: value for key, value in result.items() if key not in (*KEPT, "dev_curve", "config")}


def _identity_of(cell: Cell) -> dict[str, Any]:
    """What a result is found again by."""
    return {"config_hash": cell.hash, "config": identity(cell.config)}


def _result(cell: Cell, run: RunFolder, out: Path) -> Result:
    summary = read_sealed(run.summary)
    after = summary["after"] or {}
    by_set = {name: report["micro_f1"] for name, report in after.get("datasets", {}).items()}
    return {
        **cell.axes(),
        "split": "test",
        "status": "done",
        "micro_f1": after.get("micro_f1"),
        "datasets": by_set,
        "parse_failures": after.get("parse_failures"),
        "dev_micro_f1": (summary["dev"] or {}).get("micro_f1"),
        **_told(after, ""),
        **_told(read_sealed(run.eval / "dev.json") if (run.eval / "dev.json").is_file() else {}, "dev_"),
        "beta": summary["beta"],
        "robustness": summary["robustness"],
        "passes": summary["passes"],
        "steps": summary["steps"],
        "train_seconds": summary["train_seconds"],
        "ranks": summary["ranks"],
        "dtype": summary["dtype"],
        **_data_of(cell, run),
        **_identity_of(cell),
        "attack": _attack(run.metrics),
        "run": os.path.relpath(run.path, out),
        "notes": _notes(after),
        **kept_answers(run.eval, summary["robustness"]),
        "dev_curve": _dev_curve(run.metrics),
    }


def _data_of(cell: Cell, run: RunFolder) -> dict[str, Any]:
    """`data`: for each split the hash of its texts and answers; `sources`: of each file that they came from;
    `instructions_hash`: of each data set's instructions; `model_hash`: of the base model; `train_examples`: how many
    there were, where that is fewer than data.max_train."""
    files = sorted(file for file in run.data.glob(f"**/{MANIFEST}") if "epoch-" not in file.parent.name)
    manifests = {m["dataset"]: m for m in map(read_sealed, files)}
    hashes: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name, manifest in manifests.items():
        of = f"{name}: " if len(manifests) > 1 else ""
        hashes |= {f"{of}{split}": manifest["inputs"][split] for split in ("train", "dev", "test")}
        sources |= {f"{of}{split}": source["sha256"] for split, source in manifest.get("sources", {}).items()}
    told: dict[str, Any] = {"data": hashes, "sources": sources}
    told["instructions_hash"] = {name: m["inputs"]["instructions"] for name, m in manifests.items()}
    if model := run.noted().get("model"):
        told["model_hash"] = model
    most, there = cell.config.data.max_train, sum(m["counts"]["train"] for m in manifests.values())
    return {**told, **({"train_examples": there} if most and len(manifests) == 1 and there < most else {})}


def _notes(report: dict[str, Any]) -> list[str]:
    """What is to be known of a score; in a mixture each with its data set's name."""
    sets = report.get("datasets")
    if not sets:
        return list(report.get("notes", []))
    return [f"{name}: {note}" for name, of in sets.items() for note in of.get("notes", [])]


def _told(report: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What a report says beside its score: the gold answers' mean NLL, and the calibration error of labels."""
    return {f"{prefix}{key}": report.get(key) for key in ("nll", "nll_per_token", "ece")}


def _attack(metrics: Path) -> dict[str, float]:
    """Means over the run's second half of what its attack did: losses, cosine of delta1 and g, size."""
    names = ("loss/clean", "loss/adversarial", "nrm/cosine", "nrm/delta_to_embedding", "nrm/clipped_share")
    lines = read_json_lines(metrics)
    steps = [line for line in lines if "lr" in line]
    late = steps[len(steps) // 2 :]
    told = {name: [line[name] for line in late if line.get(name) is not None] for name in names}
    return {name: sum(values) / len(values) for name, values in told.items() if values}


def _dev_curve(metrics: Path) -> list[tuple[int, float]]:
    lines = read_json_lines(metrics)
    return [(line["step"], line["dev/micro_f1"]) for line in lines if "dev/micro_f1" in line]


def _last_words(folder: Path) -> str:
    """The last line that a failed run printed."""
    output = folder / "output.txt"
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n") if output.is_file() else []
    said = [line.rpartition("\r")[2].strip() for line in lines]
    return next((line for line in reversed(said) if line), "it printed nothing")
