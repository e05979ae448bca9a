"""summary.json, written once at a run's end: where it stands the run is finished."""

from __future__ import annotations

import logging
from typing import Any

from anit_ds.errors import InputError
from anit_ds.runfolder import RunFolder
from anit_ds.sealed import Damaged, read_sealed
from anit_ds.training.checkpoint import latest_good

logger = logging.getLogger(__name__)


def finished(run: RunFolder) -> dict[str, Any] | None:
    """The summary of a run that is finished. A damaged one is made again where the last checkpoint is there.

    Raises InputError where it is not.
    """
    if not run.summary.exists():
        return None
    try:
        return read_sealed(run.summary)
    except Damaged as error:
        if latest_good(run.checkpoints) is None:
            raise InputError(f"{error}; without a checkpoint only --fresh makes it again") from error
        logger.warning("%s; it is made again from the last checkpoint", error)
        return None
