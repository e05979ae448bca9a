"""Whose fault it is that a run stands still: what each rank says of itself, and the judgement of all of it.

torch's flight recorder also tells which rank entered which collective, after the run has ended and to who compares the
files of all ranks. Here one number of it, how many collectives a rank has begun, is compared while the run stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Status:
    """What a rank says of itself."""

    rank: int
    host: str = "unknown host"
    pid: int = 0
    step: int = 0
    progress: int = 0
    """Grows with every beat, collective and stretch of work; what stands still does not."""
    collectives: int = 0
    """Begun so far: who waits for the others has begun one more than who is missing, on whatever line it waits."""
    where: str = "not heard of yet"
    waiting: bool = False
    """The main thread is inside a collective."""
    last_words: str = ""
    """"done", or the error that ends it."""


@dataclass(slots=True)
class Seen:
    """A rank's status, and when (in this process's clock, so that hosts' clocks may differ) it last changed."""

    status: Status
    heard: float
    progressed: float
    lost: bool = False
    """Its connection closed without last words."""

    def update(self, status: Status, now: float) -> None:
        if status.progress != self.status.progress:
            self.progressed = now
        self.status, self.heard = status, now


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ranks at fault and the line that says why."""

    ranks: tuple[int, ...]
    line: str
    failed: bool = False
    """It ended with an error of its own, rather than being dead or hung."""


def judge(everyone: Iterable[Seen], *, timeout: float, now: float) -> Verdict | None:
    """Who ends the run, or None while nobody does. Ranks that said "done" are left out.

    To be called every second or so: the clock of a rank that is ahead of another starts anew.
    """
    active = [seen for seen in everyone if seen.status.last_words != "done"]
    if not active:
        return None
    for seen in active:
        if seen.status.last_words:
            line = f"{_who(seen.status)} failed after step {seen.status.step}: {seen.status.last_words}"
            return Verdict((seen.status.rank,), line, failed=True)
    # Reports are up to a second old, but a step needs every rank: whoever is gone had done all but the others' last.
    shared = max(seen.status.step for seen in active) - 1
    for seen in active:
        if seen.lost:
            line = f"{_who(seen.status)} died after step {max(seen.status.step, shared)}"
            return Verdict((seen.status.rank,), line)
    # All others wait for who is the furthest behind, however long that one's work takes, as long as it moves.
    behind = min(_place(seen.status) for seen in active)
    culprits = [seen for seen in active if _place(seen.status) == behind]
    for seen in active:
        if _place(seen.status) != behind:
            seen.progressed = now  # else it were to blame once the rank it waits for moves on
    if any(now - seen.progressed <= timeout for seen in culprits):
        culprits = []
    for seen in active:
        # When the run stands still, one that has been silent for long is the reason.
        if now - seen.heard > (timeout / 2 if culprits else timeout):
            silence = f"has not answered for {now - seen.heard:.0f} s, after step {max(seen.status.step, shared)}"
            return Verdict((seen.status.rank,), f"{_who(seen.status)} {silence}")
    if not culprits:
        return None
    named = "; ".join(f"{_who(seen.status)}, main thread at {seen.status.where}" for seen in culprits[:4])
    more = f" and {len(culprits) - 4} more" if len(culprits) > 4 else ""
    line = f"no progress for {timeout:g} s after step {culprits[0].status.step}: {named}{more}"
    return Verdict(tuple(seen.status.rank for seen in culprits), line)


def _place(status: Status) -> tuple[int, int, bool]:
    """How far a rank has come."""
    return status.step, status.collectives, status.waiting


def _who(status: Status) -> str:
    return f"rank {status.rank} ({status.host}, pid {status.pid})"
