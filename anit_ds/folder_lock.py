"""One writer in a folder: a lock that goes with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anit_ds.errors import InputError

logger = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, this process alone writes `folder`, which is made where it is missing. Readers are never
    blocked.

    The lock is the open file's (flock), so a kill lets go of it; the file stays, with the host and process id of who
    writes. NFS passes the lock on to its server; on a file system without locks a warning is logged and nothing is
    enforced. Raises InputError: another process writes there, with its host and id, or the folder cannot be written.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"out: cannot write into {folder} ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise InputError(
                    f"{folder}: {_writer(path)} is writing there; wait until it ends, or end it"
                ) from error
            logger.warning("%s: no locks on this file system, so nothing keeps a second writer out", folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _writer(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
