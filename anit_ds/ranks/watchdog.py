"""Ends a run in which a rank is dead, hung or failed, within a bounded time, with one line that names it.

A rank that is killed leaves the others waiting in a collective: for ever on NCCL, with an error that names nobody on
gloo. So every rank keeps a thread with a connection to rank 0's (wire.py), from the first rendezvous on, and reports
how far it has come and where its main thread is.

    killed         the kernel closes its connection: known at once
    stopped, cut   nothing is heard from it for `timeout_seconds`
    hung           it is heard, but has not moved for `timeout_seconds`, while all others are ahead or stand too
    failed         it says so before it ends

Rank 0's thread judges (verdict.py) and tells all; when rank 0 is the one that is gone, each of the others sees it. The
threads need no lock and no collective, so they also act while the main thread is blocked in one. Nothing is shared but
the sockets: a store on rank 0 would die with it, and a heartbeat file lags behind on a network file system.

torch's elastic agent restarts the ranks of a node when a process has ended; that one stands still, and which, is left
to us.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from anit_ds.ranks.environment import Ranks
from anit_ds.ranks.verdict import Seen, Status, Verdict, judge
from anit_ds.ranks.wire import Link, Listener, meet

# How long a rank whose collective broke waits to learn whose fault it was before it blames itself.
_GRACE_SECONDS = 3.0
_PARTING_SECONDS = 1.0
# Below this share of a core a process only waits: threads that wake up to look take a thousandth.
_WORKING_SHARE = 0.02
_LONGEST_WORDS = 500
# A main thread below one of these is waiting for other ranks.
_COLLECTIVES = (os.path.join("torch", "distributed", ""), os.path.join("deepspeed", "comm", ""))


class Watchdog:
    """Watches all ranks of a run from a background thread until `stop`. All ranks create it together.

    store: where they met, for this watchdog alone; None for one rank. timeout_seconds: the longest time between two
    signs of progress: a `beat`, a collective, and inside `working` the use of a processor. When a rank is dead, silent
    or hung this process writes one line to its log in `log_dir` (rank 0 also to stderr) and ends with exit code 1.
    Raises RunFailed when rank 0 cannot be reached.
    """

    def __init__(
        self, ranks: Ranks, store: dist.Store | None, *, timeout_seconds: float, log_dir: str | Path | None = None
    ) -> None:
        self._timeout, self._log_dir = timeout_seconds, log_dir
        self._interval = min(1.0, timeout_seconds / 5)
        self._rank = ranks.rank
        self._me = Status(ranks.rank, host=socket.gethostname(), pid=os.getpid())
        self._main_thread = threading.get_ident()
        self._beats, self._stretches, self._depth = 0, 0, 0
        self._cpu_before, self._looked = _cpu_seconds(), time.monotonic()
        self._stopping, self._all_here = threading.Event(), threading.Event()
        self._own_error = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._links: list[Link] = []
        self._listener: Listener | None = None
        self._missing = set(range(1, ranks.world_size)) if self._rank == 0 else set()
        if store is not None and ranks.world_size > 1:
            self._meet(store, ranks)
        now = time.monotonic()
        watched = range(ranks.world_size) if self._rank == 0 else (0,)
        self._seen = {rank: Seen(Status(rank), heard=now, progressed=now) for rank in watched}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        if self._missing:
            self._all_here.wait()  # the thread ends the process if one does not come

    def beat(self, step: int | None = None) -> None:
        """The main thread moves, and `step` optimizer steps are done."""
        if step is not None:
            self._me.step = step
        self._beats += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """For work that cannot beat, because a library or other processes do it: using a processor counts as progress.

        Only such work: a rank that waits for others on a GPU, or for ever in a loop, uses one as well.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._beats += 1

    def stop(self) -> None:
        """Stop watching. Called in a `finally`, so that it sees the error that ends this rank and can tell the others.

        An error that another rank's end may have caused waits for the verdict, which then ends this process.
        """
        error = sys.exception()
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self._me.last_words = "done"
        else:
            if isinstance(error, RuntimeError) and (self._links or self._rank):
                self._thread.join(2 * _GRACE_SECONDS)  # longer than `_act_on` waits
            self._own_error = True
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self._me.last_words = f"{type(error).__name__}: {first_line}".rstrip(": ")[:_LONGEST_WORDS]
        self._stopping.set()
        self._wake_writer.send(b"!")
        self._thread.join()
        self._close()

    def _meet(self, store: dist.Store, ranks: Ranks) -> None:
        met = meet(store, rank=ranks.rank, world_size=ranks.world_size, timeout=self._timeout)
        if isinstance(met, Link):
            self._add(met)
        else:
            self._listener = met
            self._selector.register(met.socket, selectors.EVENT_READ)

    def _close(self) -> None:
        """Not the background thread's work: `stop` may be about to wake it when it has already seen why."""
        for other in (*self._links, self._wake_reader, self._wake_writer, self._listener, self._selector):
            if other is not None:
                other.close()

    def _add(self, link: Link) -> None:
        self._links.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    # The rest runs on the background thread.

    def _watch(self) -> None:
        speak_at = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            judges = now >= speak_at
            if judges:
                self._report()
                self._accept()
                speak_at = now + self._interval
            for key, _ in self._selector.select(max(0.0, speak_at - now)):
                if self._listener is not None and key.fileobj is self._listener.socket:
                    self._accept()
                elif key.data is not None and key.data.socket.fileno() >= 0:  # else it was dropped just now
                    judges = self._hear(key.data) or judges
            if judges:  # not at each of a thousand ranks' reports
                now = time.monotonic()
                if self._rank == 0:
                    self._seen[0].update(replace(self._me), now)
                self._act_on(judge(self._seen.values(), timeout=self._timeout, now=now))
        # The last words.
        self._report()
        self._part()

    def _report(self) -> None:
        if self._depth:
            now, cpu = time.monotonic(), _cpu_seconds()
            if abs(cpu - self._cpu_before) > _WORKING_SHARE * (now - self._looked):
                self._stretches += 1
            self._looked, self._cpu_before = now, cpu
        self._me.where, self._me.waiting = _whereabouts(self._main_thread)
        self._me.collectives = _collectives(self._me.collectives)
        self._me.progress = self._beats + self._stretches + self._me.collectives
        self._tell({"status": asdict(self._me)})

    def _accept(self) -> None:
        """Take in every connection that has come, and drop strangers that prove nothing."""
        if self._listener is not None:
            for link in self._listener.accept():
                self._add(link)
            for link in self._listener.overdue():
                self._drop(link)

    def _tell(self, message: dict[str, Any]) -> None:
        for link in self._links:
            link.send(message)

    def _hear(self, link: Link) -> bool:
        """Take in what has come; whether it may call for a verdict."""
        stranger, spoke_last = not link.proven, False
        messages = link.receive()
        if stranger and link.proven:
            self._register(link)
        try:
            for message in messages if link.proven else ():
                if "verdict" in message:
                    self._act_on(Verdict(**message["verdict"]))
                else:
                    spoke_last = self._take(Status(**message["status"]), link)
        except (KeyError, TypeError):  # a rank of another version
            link.closed = True
        if link.closed:
            self._drop(link)
        return link.closed or spoke_last

    def _register(self, link: Link) -> None:
        """A rank that is here already keeps its place."""
        if link.rank in self._missing:
            self._missing.remove(link.rank)
            if not self._missing:
                self._all_here.set()
        else:
            link.proven, link.closed = False, True

    def _take(self, status: Status, link: Link) -> bool:
        """Keep a rank's report; whether it was its last."""
        seen, now = self._seen[link.rank if self._rank == 0 else 0], time.monotonic()
        status.rank = seen.status.rank
        seen.update(status, now)
        if self._rank != 0:
            seen.progressed = now  # who stands still can only be told by comparing all, which rank 0 does
        return bool(status.last_words)

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link.socket)
        self._links.remove(link)
        link.close()
        if link.proven:
            self._seen[link.rank if self._rank == 0 else 0].lost = True

    def _act_on(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        self._tell({"verdict": asdict(verdict)})
        if verdict.failed:
            # An error in the data or the code comes to every rank: each then ends with its own, and its exit code.
            self._stopping.wait(_GRACE_SECONDS)
            if self._own_error:
                return
        self._end(verdict)

    def _end(self, verdict: Verdict) -> NoReturn:
        line = f"[rank {self._rank}] ending the run: {verdict.line}\n".encode()
        # A log on a file system that hangs must not keep this process alive.
        threading.Timer(_GRACE_SECONDS, os._exit, (1,)).start()
        if self._rank == 0 or 0 in verdict.ranks:
            os.write(2, line)
        if self._log_dir is not None:
            with contextlib.suppress(OSError), open(Path(self._log_dir) / f"log-rank{self._rank}.txt", "ab") as log:
                log.write(line)
        self._part()
        os._exit(1)

    def _part(self) -> None:
        """Hear the others out: a socket closed with unread input throws away what was sent last, a verdict perhaps."""
        until = time.monotonic() + _PARTING_SECONDS
        for link in self._links:
            if not link.proven:
                continue
            with contextlib.suppress(OSError):
                link.flush()
                link.socket.shutdown(socket.SHUT_WR)
                link.socket.settimeout(max(0.01, until - time.monotonic()))
                while link.socket.recv(1 << 16):
                    link.socket.settimeout(max(0.01, until - time.monotonic()))


def _collectives(before: int) -> int:
    """How many collectives this rank has begun, over all groups: on NCCL the main thread returns from one at once and
    waits for it somewhere else."""
    if not dist.is_initialized():
        return before
    try:
        groups: list[Any] = list(dist.distributed_c10d._world.pg_map)
        return sum(group._get_sequence_number_for_group() for group in groups)
    except RuntimeError:  # a group on its way in or out
        return before


def _cpu_seconds() -> float:
    """What this process, without the thread that asks, and those below it have used of processors."""
    times = os.times()
    own = time.process_time() - time.thread_time()
    return own + times.children_user + times.children_system + sum(map(_cpu_seconds_of, _below("self")))


def _below(pid: str) -> Iterator[str]:
    """The children of a process, and theirs; none where the system is not Linux."""
    for file in Path("/proc", pid, "task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in file.read_text().split():
                yield child
                yield from _below(child)


def _cpu_seconds_of(pid: str) -> float:
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _whereabouts(thread: int) -> tuple[str, bool]:
    """The innermost line of ours on the thread's stack, and whether it waits in a collective below it."""
    frame = sys._current_frames().get(thread)
    innermost, ours, waiting = "", "", False
    while frame is not None:
        code = frame.f_code
        place = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} ({code.co_name})"
        innermost = innermost or place
        waiting = waiting or any(part in code.co_filename for part in _COLLECTIVES)
        if not ours and f"{os.sep}anit_ds{os.sep}" in code.co_filename:
            ours = place
        frame = frame.f_back
    return ours or innermost, waiting
