"""What killed writers left in a run's folder: swept when the next one begins there.

Only names that `replacing`, `replacing_folder`, `RunFolder.accept` and the making of a noisy set give, and only where a
run keeps its own files. Whoever sweeps must be the only writer of the run; eval/ alone has others, whose files are left
while they live.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from anit_ds.files import remove_unless_written

_FILE, _FOLDER, _PARTS = (
    re.compile(pattern) for pattern in (r"\.(.+)\.[0-9]+", r"\.(.+)\.(writing|old|gone)", r"\.parts-[0-9a-f]{16}")
)
_IN_THE_RUN = {"config.yaml", "run.json", "metrics.jsonl", "summary.json", "requeue", "adapter", "model", "replaced"}
_READERS_WRITE_FOR = 3600.0  # seconds


def sweep(run: Path) -> None:
    """Remove half-written files and folders, and the parts of noisy sets that are complete.

    A folder that lost its name between two renames (see `replacing_folder`) gets it back.
    """
    for path in run.iterdir() if run.is_dir() else ():
        half = _FILE.fullmatch(path.name) or _FOLDER.fullmatch(path.name)
        if half and half[1] in _IN_THE_RUN:
            _sweep(path)
    for folder in (run / "data", run / "checkpoints"):
        for path in sorted(folder.rglob(".*")):
            _sweep(path)
    for path in (run / "eval").glob(".*"):
        if path.is_file() and not path.is_symlink() and _FILE.fullmatch(path.name):
            remove_unless_written(path, after=_READERS_WRITE_FOR)


def _sweep(path: Path) -> None:
    if path.is_symlink():
        return
    if path.is_file() and _FILE.fullmatch(path.name):
        path.unlink()
    elif path.is_dir() and (half := _FOLDER.fullmatch(path.name)):
        whole = path.with_name(half[1])
        if half[2] == "old" and not whole.exists():
            os.rename(path, whole)
        else:
            shutil.rmtree(path)
    elif path.is_dir() and _PARTS.fullmatch(path.name) and path.with_name("manifest.json").exists():
        shutil.rmtree(path)  # without a manifest they are where the next build goes on
