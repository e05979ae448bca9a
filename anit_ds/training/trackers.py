"""Trackers beside TensorBoard, such as Weights & Biases or MLflow, through accelerate: one name in `train.report_to`.

A resumed run goes on in the same run of the tracker where that can: OUT/trackers.json keeps its id there. Projects,
servers and keys come from each tracker's own variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from anit_ds.errors import InputError, first_line
from anit_ds.files import read_json, write_json
from anit_ds.runfolder import RunFolder

logger = logging.getLogger(__name__)

_PROJECT = "anit-ds"


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError for a tracker whose package is not here."""
    there = {str(name) for name in get_available_trackers()} | {"tensorboard"}
    for name in names:
        if name not in there:
            raise InputError(
                f"train.report_to: {name} is not installed; `pip install {name.replace('_', '-')}`, or leave it out"
            )


class Trackers:
    """The open trackers of a run, on rank 0. One that fails is left out with a warning: it must not end a training."""

    def __init__(
        self, run: RunFolder, names: Sequence[str], settings: Mapping[str, Any], *, told: Mapping[str, int]
    ) -> None:
        """`settings` are the configuration's fields. `told`: of each figure the last step whose value an
        earlier start has told.

        Raises InputError for a tracker that does not start.
        """
        self._told = told
        self._open: dict[str, GeneralTracker] = {}
        ids: dict[str, str] = read_json(run.trackers) if run.trackers.is_file() else {}
        begun = set(ids)
        for name in names:
            try:
                self._open[name] = tracker = _tracker(name, run, ids)
                tracker.start()
                if name not in begun:
                    tracker.store_init_configuration(dict(settings))
            except Exception as error:  # each tracker has exceptions of its own
                raise InputError(f"train.report_to: {name} does not start: {first_line(error)}") from error
            if name == "mlflow":
                ids["mlflow"] = tracker.tracker.info.run_id
        if ids:
            write_json(run.trackers, ids)

    def log(self, line: Mapping[str, float]) -> None:
        """A line of the record; what an earlier start has told of it is passed over."""
        step = int(line["step"])
        new = {name: value for name, value in line.items() if name != "step" and step > self._told.get(name, 0)}
        if new:
            self._each("log", new, step=step)

    def conclude(self, step: int, scores: Mapping[str, float]) -> None:
        """The final scores."""
        self._each("log", dict(scores), step=step)

    def close(self) -> None:
        self._each("finish")

    def _each(self, what: str, *given: Any, **named: Any) -> None:
        for name, tracker in list(self._open.items()):
            try:
                getattr(tracker, what)(*given, **named)
            except Exception as error:  # a server that is gone, a disk that is full
                logger.warning("%s is told nothing more: %s", name, first_line(error))
                del self._open[name]


def _tracker(name: str, run: RunFolder, ids: dict[str, str]) -> GeneralTracker:
    """accelerate's tracker of this name, to go on where `ids` says; an id that we choose is added there."""
    PartialState()  # which its log messages ask for; the process group is the one that there is
    called = run.path.resolve().name
    project = os.environ.get(f"{name.upper()}_PROJECT", _PROJECT)
    if name in ("wandb", "swanlab"):
        same = ids.setdefault(name, uuid.uuid4().hex[:16])
        return LOGGER_TYPE_TO_CLASS[name](project, id=same, name=called, resume="allow")
    if name == "trackio":
        same = ids.setdefault(name, f"{called}-{uuid.uuid4().hex[:8]}")
        return LOGGER_TYPE_TO_CLASS[name](project, name=same, resume="allow")
    if name == "mlflow":
        return LOGGER_TYPE_TO_CLASS[name](project, run_id=ids.get(name), run_name=called)
    if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
        return LOGGER_TYPE_TO_CLASS[name](project, logging_dir=str(run.path))
    return LOGGER_TYPE_TO_CLASS[name](project)
