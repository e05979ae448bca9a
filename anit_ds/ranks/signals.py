"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 mean: finish the step, save, exit 0, and expect to be started again."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from types import FrameType

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# One Ctrl-C may come twice, from the terminal and through a launcher; a person takes longer for a second one.
_ONE_PRESS = 1.0


class Signals:
    """`received` is the name of the first such signal, or None. The step in progress is never interrupted, but by a
    second Ctrl-C, which raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._pressed: float | None = None
        if threading.current_thread() is threading.main_thread():
            for which in _REQUESTS:
                signal.signal(which, self._note)
            # An interpreter on its way out takes its handlers down; a signal then would turn a finished run into a
            # failed one.
            atexit.register(_ignore_requests)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if number != signal.SIGINT:
            return
        if self._pressed is None:
            self._pressed = time.monotonic()
            # No stream: the handler may have interrupted a write to it.
            os.write(2, b"\nanit: saves and ends after this step; Ctrl-C once more ends it at once\n")
        elif time.monotonic() - self._pressed > _ONE_PRESS:
            raise KeyboardInterrupt


def _ignore_requests() -> None:
    for which in _REQUESTS:
        signal.signal(which, signal.SIG_IGN)
