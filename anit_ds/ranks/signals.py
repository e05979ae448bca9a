"""SIGTERM, SIGUSR1 and SIGUSR2 mean: finish the step, save, exit 0, and expect to be started again."""

from __future__ import annotations

import atexit
import signal
import threading
from types import FrameType

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """`received` is the name of the first such signal, or None. The step in progress is never interrupted."""

    def __init__(self) -> None:
        self.received: str | None = None
        if threading.current_thread() is threading.main_thread():
            for which in _REQUESTS:
                signal.signal(which, self._note)
            # An interpreter on its way out takes its handlers down; a signal then would turn a finished run into a
            # failed one.
            atexit.register(_ignore_requests)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def _ignore_requests() -> None:
    for which in _REQUESTS:
        signal.signal(which, signal.SIG_IGN)
