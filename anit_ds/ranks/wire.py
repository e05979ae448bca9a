"""The watchdog's wire: messages between rank 0 and every other rank that only who holds the run's secret can send.

    rank 0   challenge [32 bytes]                    ->
             <-   challenge [32 bytes], rank [4 bytes]   rank
    both     key = HMAC-SHA256(secret, both challenges, rank)
    then each sends frames: length [4], HMAC-SHA256(key, who sends, how many before, payload) [32], payload

The secret stays where it is. Fresh challenges make a recorded frame worthless, the count one that is sent again, and
the sender one that is sent back. An empty frame is the proof that each side waits for before it says or believes
anything. Until then a peer is given a few bytes, a few seconds, and one place among few; whatever is wrong with what it
sends costs it its connection, and nobody else anything.

(The handshake of `multiprocessing.connection` waits for one slow peer while all others wait, and uses MD5 up to Python
3.11.) Frames are not encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import random
import resource
import secrets
import selectors
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from anit_ds.errors import RunFailed

SECRET_VARIABLE = "ANIT_WATCHDOG_SECRET"
"""Where a launcher may put the run's secret, on every rank; without it rank 0 gives one out through the store."""

_NONCE = 32
_MOST_BYTES = 1 << 16
_MOST_UNSENT = 1 << 18
_PROOF_SECONDS = 10.0
_FEWEST_PLACES = 128
_CONNECT_SECONDS = 60.0
_FROM_LISTENER, _FROM_RANK = b"0", b"1"


@dataclass(slots=True)
class Link:
    """One end of a connection between rank 0 (`listens`) and the rank `rank`. It never blocks.

    `proven` once the other end has shown that it knows the secret, and only then does `rank` mean anything on rank 0's
    end. `closed` when it is of no use any more: the stream ended, or something in it was wrong.
    """

    socket: socket.socket
    secret: bytes = field(repr=False)
    listens: bool
    rank: int = -1
    proven: bool = False
    closed: bool = False
    since: float = field(default_factory=time.monotonic)
    _nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE), repr=False)
    _key: bytes = field(default=b"", repr=False)
    _unread: bytearray = field(default_factory=bytearray, repr=False)
    _unsent: bytearray = field(default_factory=bytearray, repr=False)
    _read: int = 0
    _sent: int = 0

    def __post_init__(self) -> None:
        self.socket.setblocking(False)
        self._unsent += self._nonce if self.listens else self._nonce + _rank_bytes(self.rank)
        self.flush()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message for a proven peer, at most 64 KiB; for any other, and one that reads nothing, do nothing."""
        if self.proven and len(self._unsent) < _MOST_UNSENT:
            self._frame(json.dumps(message).encode())

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        messages: list[dict[str, Any]] = []
        try:
            data = self.socket.recv(_MOST_BYTES)
            self.closed = self.closed or not data
            self._unread += data
            while (payload := self._next_payload()) is not None:
                if payload:
                    messages.append(_message(payload))
            self.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError, RecursionError):  # JSON of any depth
            self.closed = True
        return messages

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def close(self) -> None:
        self.closed = True
        self.socket.close()

    def _next_payload(self) -> bytes | None:
        """The next frame's payload, or None while it is not there whole. Raises ValueError: not one of the peer's."""
        if not self._key and not self._agree():
            return None
        if len(self._unread) < 36:
            return None
        length = int.from_bytes(self._unread[:4], "big")
        if length > (_MOST_BYTES if self.proven else 0):
            raise ValueError("too long")
        if len(self._unread) < 36 + length:
            return None
        tag, payload = bytes(self._unread[4:36]), bytes(self._unread[36 : 36 + length])
        if not hmac.compare_digest(tag, self._tag(not self.listens, self._read, payload)):
            raise ValueError("not from who knows the secret, or not now")
        del self._unread[: 36 + length]
        self._read += 1
        if not self.proven:
            self.proven = True
            if self.listens:
                self._frame(b"")
        return payload

    def _agree(self) -> bool:
        """Take in the other's challenge, once it is there whole; then there is a key."""
        length = _NONCE + (4 if self.listens else 0)
        if len(self._unread) < length:
            return False
        theirs = bytes(self._unread[:length])
        del self._unread[:length]
        if self.listens:
            self.rank = int.from_bytes(theirs[_NONCE:], "big")
            nonces = self._nonce + theirs[:_NONCE]
        else:
            nonces = theirs + self._nonce
        self._key = hmac.digest(self.secret, b"anit watchdog" + nonces + _rank_bytes(self.rank), "sha256")
        if not self.listens:
            self._frame(b"")
        return True

    def _frame(self, payload: bytes) -> None:
        self._unsent += len(payload).to_bytes(4, "big") + self._tag(self.listens, self._sent, payload) + payload
        self._sent += 1
        self.flush()

    def _tag(self, from_listener: bool, number: int, payload: bytes) -> bytes:
        who = _FROM_LISTENER if from_listener else _FROM_RANK
        return hmac.digest(self._key, who + number.to_bytes(8, "big") + payload, "sha256")


def _rank_bytes(rank: int) -> bytes:
    return rank.to_bytes(4, "big")


def _message(payload: bytes) -> dict[str, Any]:
    message = json.loads(payload)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


class Listener:
    """Rank 0's door: takes in whoever connects, and drops who does not prove itself in time."""

    def __init__(self, host: str, secret: bytes, *, world_size: int) -> None:
        """Binds to `host`. Raises OSError where this machine does not have that address."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):  # a system whose limit is not what it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, 0), family=family, backlog=max(_FEWEST_PLACES, world_size))
        self.socket.setblocking(False)
        self._secret = secret
        self._places = max(_FEWEST_PLACES, 2 * world_size)
        self._unproven: list[Link] = []

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def accept(self) -> list[Link]:
        """Every connection that has come; they count as strangers until they are `proven`."""
        come: list[Link] = []
        while len(come) < self._places:
            try:
                connection = self.socket.accept()[0]
            except BlockingIOError:
                break
            except OSError:  # it is gone already, or there is no descriptor left for it
                time.sleep(0.01)
                break
            come.append(Link(connection, self._secret, listens=True))
        self._unproven += come
        return come

    def overdue(self) -> list[Link]:
        """Strangers whose time is up, and the oldest of those that are too many: whoever is honest comes again."""
        self._unproven = [link for link in self._unproven if not (link.proven or link.closed)]
        since = time.monotonic() - _PROOF_SECONDS
        too_many = len(self._unproven) - self._places
        return [link for place, link in enumerate(self._unproven) if place < too_many or link.since < since]

    def close(self) -> None:
        self.socket.close()


def meet(store: dist.Store, *, rank: int, world_size: int, timeout: float) -> Listener | Link:
    """Rank 0's listener, or another rank's proven link to it. All ranks call it together, with a store for it alone.

    `timeout`: seconds that a rank may take to get here. Raises RunFailed: one did not, or cannot be reached.
    """
    secret = os.environ.get(SECRET_VARIABLE, "")
    last = world_size - 1
    if rank == last:
        store.set("host", _master())
    if rank == 0:
        host = _told(store, "host", by=last, timeout=timeout)
        given = "" if secret else secrets.token_hex(32)
        try:
            listener = Listener(host, (secret or given).encode(), world_size=world_size)
        except OSError:  # MASTER_ADDR is not an address of this machine's own: it is translated on the way
            host = os.environ.get("MASTER_ADDR", "127.0.0.1")
            listener = Listener("::" if ":" in host else "", (secret or given).encode(), world_size=world_size)
        store.set("address", json.dumps([host, listener.port, given]))
        return listener
    host, port, given = json.loads(_told(store, "address", by=0, timeout=timeout))
    return _connect(host, port, (secret or given).encode(), rank)


def _master() -> str:
    """The address behind MASTER_ADDR as this rank sees it. Rank 0 listens on what the last rank sees, which is on
    another node where there are several: a node's own name often stands for a loopback address in its own files."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise RunFailed(f"MASTER_ADDR: the name {host} has no address ({error})") from error


def _told(store: dist.Store, key: str, *, by: int, timeout: float) -> str:
    try:
        store.wait([key], timedelta(seconds=timeout))
        return store.get(key).decode()
    except RuntimeError as error:
        raise RunFailed(f"rank {by} has not come to the watchdog within {timeout:g} s") from error


def _connect(host: str, port: int, secret: bytes, rank: int) -> Link:
    """A proven link; tried again while rank 0 has more strangers than places."""
    until = time.monotonic() + _CONNECT_SECONDS
    why = "it does not prove that it knows the run's secret"
    while (left := until - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection((host, port), timeout=left), secret, listens=False, rank=rank)
        except OSError as error:
            why = str(error)
        else:
            with selectors.DefaultSelector() as selector:
                selector.register(link.socket, selectors.EVENT_READ)
                while not (link.proven or link.closed) and (left := until - time.monotonic()) > 0:
                    if selector.select(left):
                        link.receive()
            if link.proven and not link.closed:
                return link
            link.close()
        time.sleep(random.uniform(0.1, 0.5))
    raise RunFailed(
        f"rank {rank} cannot reach rank 0's watchdog at {host}:{port} ({why}); open the ports between the nodes, as "
        f"NCCL and gloo need them too, and give every rank the same {SECRET_VARIABLE}, or none"
    )
