"""What users' files and command lines hold in the end: values of every type and size, and bytes of every origin."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TEXTS = [
    "", " ", "\t", "\n", "\r", "a", "é😀", "\u2028", "\u00a0", "\u3000", "\x85", "\x0b\x0c\x1c\x1d\x1e", "\ufeff", "\0",
    "\ud83d", "None", "no", "yes", "null", "~", "010", "1_000", "1e5", "1e999", "-1", "12:30", "2024-13-45", "0x_",
    ".inf", "NaN", "inf", "9" * 40, "9" * 5000, "x" * 300, "x" * 3000, "####", "\\", "\\n", '"', "'", "<eos>",
    "-DOCSTART-", "B-", "I-LOC", "O", "(GPE", "*)", "#begin document (a)", "[[[[", "{{{{", "]", "}", "&a", "*a", "<<",
    "!!timestamp 1", "!!int x", "${NOT_SET_ANYWHERE}", "${HOME}/x", "$", "~nobody-here/x", "../..", "/", "con\0", "%",
    "@", "`", "- ", ": ", ", ", "? ", "|", ">",
]  # fmt: skip
BYTES = [
    b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b'"',
    b"'", b"\t", b" ", b",", b"[", b"]", b"{", b"}", b"(", b")", b":", b"\\", b"\\ud83d", b"\\u0000", b"null", b"true",
    b"NaN", b"Infinity", b"1e999", b"-", b"#", b"####", b"*", b"&a ", b"*a", b"<<: ", b"!!x ", b"\xc2\xa0",
    b"\xe2\x80\xa8", b"9" * 400, b"[" * 2000, b"(" * 500,
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 9, 10**6 + 1, 2**63, 2**70, -(10**400), 10**4000, 0.5, -0.5, 1.5, 1e300, 1e308,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip


class Odd:
    """Draws odd things, the same ones from the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self) -> str:
        rng = self.rng
        if rng.random() < 0.7:
            return rng.choice(TEXTS)
        return "".join(rng.choice(TEXTS)[:20] for _ in range(rng.randrange(4)))

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can write, and infinity and NaN."""
        rng = self.rng
        kind = rng.randrange(14 if depth < 3 else 10)
        if kind < 4:
            return self.text()
        if kind < 10:
            return rng.choice([None, True, False, *NUMBERS])
        if kind < 12:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        return {self.text(): self.value(depth + 1) for _ in range(rng.randrange(3))}

    def changed(self, value: Any) -> Any:
        """A copy with something in it replaced, removed, repeated or added."""
        rng = self.rng
        if rng.random() < 0.15 or not isinstance(value, list | dict) or not value:
            return self.value()
        if isinstance(value, list):
            made, at = list(value), rng.randrange(len(value))
            kind = rng.randrange(6)
            if kind == 0:
                del made[at]
            elif kind == 1:
                made.insert(at, self.value())
            else:
                made[at] = made[at - 1] if kind == 2 else self.changed(made[at])
            return made
        made_dict, key = dict(value), rng.choice(list(value))
        kind = rng.randrange(6)
        if kind == 0:
            del made_dict[key]
        elif kind == 1:
            made_dict[self.text()] = self.value()
        else:
            made_dict[key] = self.changed(made_dict[key])
        return made_dict

    def damaged(self, raw: bytes) -> bytes:
        """Bytes with up to four accidents."""
        rng = self.rng
        for _ in range(rng.randrange(1, 5)):
            kind, at = rng.randrange(10), rng.randrange(len(raw) + 1)
            until = min(len(raw), at + rng.choice([1, 1, 2, 5, 40]))
            if kind < 5:
                raw = raw[:at] + rng.choice(BYTES) + raw[at if kind < 3 else until :]
            elif kind == 5:
                raw = raw[:at] + raw[until:]
            elif kind == 6:
                raw = raw[:at] + raw[at:until] * 2 + raw[until:]
            elif kind == 7:
                raw = raw[:at]
            elif kind == 8:
                lines = raw.split(b"\n")
                rng.shuffle(lines)
                raw = b"\n".join(lines)
            elif rng.random() < 0.2:
                text = raw.decode("utf-8", "ignore")
                raw = text.encode(rng.choice(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "cp1252"]), "ignore")
        return raw


class TooLong(BaseException):
    """No Exception, so that nothing takes it for a broken record."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends what computes longer; how long it waits for a busy machine is not its own."""

    def stop(*_: object) -> None:
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
