"""Ends a run in which a rank is dead, hung or failed, within a bounded time, with one line that names it.

A rank that is killed leaves the others waiting in a collective: for ever on NCCL, with an error that names nobody on
gloo. So every rank keeps a thread with a TCP connection to rank 0's, and reports its last step and where its main
thread is.

    killed         the kernel closes its connection: known at once
    stopped, cut   nothing is heard from it for `timeout_seconds`
    hung           it is heard, but no rank has made a step for `timeout_seconds`
    failed         it says so before it ends

Rank 0's thread judges and tells all; when rank 0 is the one that is gone, each of the others sees it. The threads need
no lock and no collective, so they also act while the main thread is blocked in one. Nothing is shared but the sockets:
a store on rank 0 would die with it, and a heartbeat file lags behind on a network file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

# How long a rank whose collective broke waits to learn whose fault it was before it blames itself.
_GRACE_SECONDS = 3.0
_CONNECT_SECONDS = 60.0
_PARTING_SECONDS = 1.0
# A main thread below one of these is waiting for other ranks.
_COLLECTIVES = (os.path.join("torch", "distributed", ""), os.path.join("deepspeed", "comm", ""))


@dataclass(slots=True)
class Status:
    """What a rank says of itself."""

    rank: int
    host: str = "unknown host"
    pid: int = 0
    step: int = 0
    beats: int = 0
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
        if status.beats != self.status.beats:
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
    """Who ends the run, or None while nobody does. Ranks that said "done" are left out."""
    active = [seen for seen in everyone if seen.status.last_words != "done"]
    for seen in active:
        if seen.status.last_words:
            line = f"{_who(seen.status)} failed after step {seen.status.step}: {seen.status.last_words}"
            return Verdict((seen.status.rank,), line, failed=True)
    # Reports are up to a second old, but a step needs every rank: whoever is gone had done all but the others' last.
    shared = max((seen.status.step for seen in active), default=1) - 1
    for seen in active:
        if seen.lost:
            line = f"{_who(seen.status)} died after step {max(seen.status.step, shared)}"
            return Verdict((seen.status.rank,), line)
    still = any(now - seen.progressed > timeout for seen in active)
    for seen in active:
        # When all stand still, one that has been silent for long is the reason.
        if now - seen.heard > (timeout / 2 if still else timeout):
            silence = f"has not answered for {now - seen.heard:.0f} s, after step {max(seen.status.step, shared)}"
            return Verdict((seen.status.rank,), f"{_who(seen.status)} {silence}")
    if not still:
        return None
    # When one rank hangs all stand still; it is the furthest behind, and the one that waits for no other.
    culprits = _lowest(active, lambda seen: (seen.status.step, seen.status.waiting))
    named = "; ".join(f"{_who(seen.status)}, main thread at {seen.status.where}" for seen in culprits[:4])
    more = f" and {len(culprits) - 4} more" if len(culprits) > 4 else ""
    line = f"no progress for {timeout:g} s after step {culprits[0].status.step}: {named}{more}"
    return Verdict(tuple(seen.status.rank for seen in culprits), line)


def _lowest(seen: list[Seen], key: Any) -> list[Seen]:
    least = min(map(key, seen))
    return [one for one in seen if key(one) == least]


def _who(status: Status) -> str:
    return f"rank {status.rank} ({status.host}, pid {status.pid})"


class Watchdog:
    """Watches all ranks of the process group from a background thread until `stop`.

    `timeout_seconds` is the longest time between two `beat`s (and before the first); it must exceed the slowest step
    or evaluation batch. All ranks create it together. When a rank is dead, silent or hung this process writes one line
    to its log in `run_dir` (rank 0 also to stderr) and ends with exit code 1.
    Raises ConnectionError when rank 0 cannot be reached.
    """

    def __init__(self, *, timeout_seconds: float, run_dir: str | Path) -> None:
        self._timeout, self._log_dir = timeout_seconds, Path(run_dir)
        self._interval = min(1.0, timeout_seconds / 5)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._me = Status(self._rank, host=socket.gethostname(), pid=os.getpid())
        self._main_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._own_error = False
        self._token = ""
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._peers: list[_Peer] = []
        self._listener: socket.socket | None = None
        self._meet()
        now = time.monotonic()
        watched = range(self._world_size) if self._rank == 0 else (0,)
        self._seen = {rank: Seen(Status(rank), heard=now, progressed=now) for rank in watched}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int) -> None:
        """The main thread is alive and `step` optimizer steps are done; also called between evaluation batches."""
        self._me.step = step
        self._me.beats += 1

    def stop(self) -> None:
        """Stop watching. Called in a `finally`, so that it sees the error that ends this rank and can tell the others.

        An error that another rank's end may have caused waits for the verdict, which then ends this process.
        """
        error = sys.exception()
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self._me.last_words = "done"
        else:
            if isinstance(error, RuntimeError) and self._world_size > 1:
                self._thread.join(2 * _GRACE_SECONDS)  # longer than `_act_on` waits
            self._own_error = True
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self._me.last_words = f"{type(error).__name__}: {first_line}".rstrip(": ")
        self._stopping.set()
        self._wake_writer.send(b"!")
        self._thread.join()
        self._close()

    def _meet(self) -> None:
        """Connect every rank to rank 0."""
        if self._world_size == 1:
            return
        address: list[Any] = [None]
        if self._rank == 0:
            self._listener = socket.create_server(("", 0), backlog=self._world_size)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)
            # The token keeps a stray connection to the open port from posing as a rank.
            self._token = secrets.token_hex(16)
            address = [(self._listener.getsockname()[1], self._token)]
        dist.broadcast_object_list(address, src=0)
        if self._rank == 0:
            return
        port, self._token = address[0]
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        try:
            connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise ConnectionError(
                f"rank {self._rank} cannot reach rank 0's watchdog at {host}:{port} ({error}); open the ports between "
                "the nodes, as NCCL and gloo need them too"
            ) from error
        self._add(_Peer(connection, rank=0))

    def _close(self) -> None:
        """Not the background thread's work: `stop` may be about to wake it when it has already seen why."""
        for peer in self._peers:
            peer.socket.close()
        for other in (self._wake_reader, self._wake_writer, self._listener, self._selector):
            if other is not None:
                other.close()

    def _add(self, peer: _Peer) -> None:
        peer.socket.setblocking(False)
        self._peers.append(peer)
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    # The rest runs on the background thread.

    def _watch(self) -> None:
        speak_at = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= speak_at:
                self._report()
                speak_at = now + self._interval
            for key, _ in self._selector.select(max(0.0, speak_at - now)):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data is not None:
                    self._hear(key.data)
            now = time.monotonic()
            if self._rank == 0:
                self._seen[0].update(Status(**asdict(self._me)), now)
            self._act_on(judge(self._seen.values(), timeout=self._timeout, now=now))
        # The last words, for everyone who has connected by now.
        self._accept()
        self._report()
        self._part()

    def _report(self) -> None:
        self._me.where, self._me.waiting = _whereabouts(self._main_thread)
        self._tell({"status": asdict(self._me)})

    def _accept(self) -> None:
        """Take in every connection that has come."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while self._listener is not None:
                self._add(_Peer(self._listener.accept()[0]))

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers:
            peer.send({"token": self._token, **message})

    def _hear(self, peer: _Peer) -> None:
        for message in peer.receive():
            if message.get("token") != self._token:
                peer.closed = True
            elif "verdict" in message:
                self._act_on(Verdict(**message["verdict"]))
            else:
                status = Status(**message["status"])
                peer.rank = status.rank
                seen, now = self._seen[status.rank], time.monotonic()
                seen.update(status, now)
                if self._rank != 0:
                    seen.progressed = now  # who stands still can only be told by comparing all, which rank 0 does
        if peer.closed:
            self._selector.unregister(peer.socket)
            self._peers.remove(peer)
            peer.socket.close()
            if peer.rank is not None:
                self._seen[peer.rank].lost = True

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
        with contextlib.suppress(OSError), open(self._log_dir / f"log-rank{self._rank}.txt", "ab") as log:
            log.write(line)
        self._part()
        os._exit(1)

    def _part(self) -> None:
        """Hear the others out: a socket closed with unread input throws away what was sent last, a verdict perhaps."""
        until = time.monotonic() + _PARTING_SECONDS
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_WR)
                peer.socket.settimeout(max(0.01, until - time.monotonic()))
                while peer.socket.recv(1 << 16):
                    peer.socket.settimeout(max(0.01, until - time.monotonic()))


@dataclass(slots=True)
class _Peer:
    """A connection that carries one JSON object a line and never blocks."""

    socket: socket.socket
    rank: int | None = None
    closed: bool = False
    _unread: bytes = field(default=b"", repr=False)

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            # Its buffer is full because it reads nothing: silence will give it away.
            self.closed = self.rank is None
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """The whole lines that have come; sets `closed` at the end of the stream."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.closed = self.closed or not data
        *lines, self._unread = (self._unread + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            self.closed = True
            return []


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
