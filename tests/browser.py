"""Headless Chromium over its debugging pipe: JSON messages that end with a zero byte, on the descriptors 3 and 4."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any


class Browser:
    """One page of a browser. Use it in a `with`."""

    def __init__(self, chromium: str, profile: Path) -> None:
        theirs_in, self._ours_out = _high_pipe()
        self._ours_in, theirs_out = _high_pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
        command = [chromium, *options, f"--user-data-dir={profile}", "about:blank"]
        self._process = os.posix_spawn(chromium, command, os.environ, file_actions=[*silent, *pipes])
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._read, self._session = count(1), b"", None

    def __enter__(self) -> Browser:
        page = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._ours_in)
        os.close(self._ours_out)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the DevTools protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._ours_out, json.dumps(message | session).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                piece = os.read(self._ours_in, 1 << 16)
                if not piece:
                    raise RuntimeError("the browser has ended")
                self._read += piece
            raw, _, self._read = self._read.partition(b"\0")
            reply = json.loads(raw)
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return dict(reply["result"])

    def value(self, script: str) -> Any:
        """What a JavaScript expression is."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """Its value once it is true."""
        ends = time.monotonic() + seconds
        while not (found := self.value(script)):
            if time.monotonic() > ends:
                raise TimeoutError(script)
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        self("Input.insertText", text=text)

    def look(self, *, width: int, height: int, scheme: str) -> None:
        """As a window of this size shows it, in the scheme `dark` or `light`."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))


def _high_pipe() -> tuple[int, int]:
    """A pipe whose descriptors are no 3 or 4."""
    pair = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pair]
    for end in pair:
        os.close(end)
    return high[0], high[1]
