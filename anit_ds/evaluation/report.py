"""An evaluation, and how a run's eval/ keeps it: NAME.json, sealed, which vouches for predictions-NAME.jsonl."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from anit_ds.errors import InputError
from anit_ds.files import json_line, read_json_lines, replacing
from anit_ds.ranks import distributed
from anit_ds.sealed import Damaged, check_file, read_sealed, write_sealed

_PREDICTIONS = "predictions_sha256"


@dataclass(frozen=True)
class Evaluation:
    """A split's score and the answers it was computed from. `report` is what eval/NAME.json holds."""

    report: dict[str, Any]
    predictions: list[dict[str, Any]]

    @property
    def micro_f1(self) -> float:
        return float(self.report["micro_f1"])

    @property
    def broken(self) -> bool:
        """Whether no gold answer has a finite probability: such a model's answers mean nothing."""
        return self.report["n"] > 0 and self.report["nonfinite"] == self.report["n"]


def reports_of(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A report's parts by the data set's name; of one data set it is the only part."""
    return report.get("datasets") or {report.get("dataset"): report}


class AnsweredBy(NamedTuple):
    """Whose answers an evaluation is of: a report in eval/ outlives the adapter that it was made with."""

    step: int | None
    """The optimizer step of the weights; 0 of the base, None where an older version did not say."""
    dtype: str
    limits: dict[str, int]
    """Of each data set the tokens that an answer may have."""
    configuration: str | None = None
    """The hash of the run's configuration; None where an older version did not say."""

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> AnsweredBy:
        """That of a report; of nothing in particular where it does not say."""
        said = report.get("answered_by") or {}
        return cls(said.get("step"), said.get("dtype", ""), said.get("limits", {}), said.get("configuration"))

    def __str__(self) -> str:
        of = f" of configuration {self.configuration[:8]}" if self.configuration else ""
        limits = ", ".join(f"{n} tokens for {s}" for s, n in self.limits.items())
        return f"step {self.step}{of} in {self.dtype}, {limits}"


def write_evaluation(folder: Path, name: str, evaluation: Evaluation, by: AnsweredBy) -> None:
    """eval/predictions-NAME.jsonl and then eval/NAME.json, which knows its checksum and whose answers they are, on
    rank 0.

    Raises InputError when the folder cannot be written to.
    """
    if distributed.rank() != 0:
        return
    predictions = folder / f"predictions-{name}.jsonl"
    digest = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror})") from error
    with replacing(predictions) as file:
        for row in evaluation.predictions:
            line = json_line(row)
            file.write(line)
            digest.update(line)
    beside = {"answered_by": by._asdict(), _PREDICTIONS: digest.hexdigest()}
    write_sealed(folder / f"{name}.json", {**evaluation.report, **beside})


def read_evaluation(folder: Path, name: str) -> Evaluation | None:
    """What `write_evaluation` wrote under this name, or None. Raises Damaged where it is not that any more."""
    path, predictions = folder / f"{name}.json", folder / f"predictions-{name}.jsonl"
    if not (path.is_file() and predictions.is_file()):
        return None
    report = read_sealed(path)
    digest = report.pop(_PREDICTIONS, None)
    if digest is not None:
        check_file(predictions, digest)
    try:
        return Evaluation(report, read_json_lines(predictions))
    except InputError as error:
        raise Damaged(str(error)) from error
