"""Who reaches the watchdog's port without the run's secret changes nothing, whatever they send.

ANIT_STRANGERS says how many connections the run of two ranks stands; the suite tries 300.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import ranks
import torch.distributed as dist
from forked import Program
from formulas import anit
from hypothesis import given
from hypothesis import strategies as st
from plain_loop import plain_loop
from stages import TWO_STEPS, difference

from anit_ds.config import Config
from anit_ds.ranks.wire import SECRET_VARIABLE, Link, Listener

STRANGERS = int(os.environ.get("ANIT_STRANGERS", "300"))
SECRET = "known to the ranks alone"
Sides = tuple[Link, Link]


@contextlib.contextmanager
def sides(secret: str = SECRET, others: str = SECRET, *, rank: int = 1) -> Iterator[Sides]:
    """A link's two ends before they have read anything: rank 0's, and a rank's."""
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(end) for end in socket.socketpair())
        yield Link(one, secret.encode(), listens=True), Link(other, others.encode(), listens=False, rank=rank)


def exchange(listening: Link, calling: Link, turns: int = 4) -> None:
    for _ in range(turns):
        assert listening.receive() == [] and calling.receive() == []


def test_who_has_the_secret_is_heard_and_believed_on_both_ends() -> None:
    with sides(rank=7) as (listening, calling):
        calling.send({"too": "early"})
        exchange(listening, calling)
        assert listening.proven and calling.proven and listening.rank == 7
        calling.send({"a": 1})
        calling.send({"b": [2]})
        listening.send({"c": "3"})
        assert listening.receive() == [{"a": 1}, {"b": [2]}] and calling.receive() == [{"c": "3"}]


def test_who_has_another_secret_learns_nothing() -> None:
    with sides(others="guessed") as (listening, calling):
        exchange(listening, calling)
        assert listening.closed and not listening.proven and not calling.proven
        listening.send({"verdict": "secret"})
        assert calling.receive() == [] and not calling._unread


class Recording(socket.socket):
    """Keeps what is sent."""

    sent = b""

    def send(self, data: object, flags: int = 0) -> int:
        size = super().send(data, flags)  # type: ignore[call-overload]
        self.sent += bytes(data)[:size]  # type: ignore[call-overload]
        return size


def recorded(message: dict[str, object]) -> bytes:
    """What a rank sent in a session that rank 0 believed."""
    one, other = socket.socketpair()
    with one, Recording(fileno=other.detach()) as recording:
        listening = Link(one, SECRET.encode(), listens=True)
        calling = Link(recording, SECRET.encode(), listens=False, rank=1)
        exchange(listening, calling)
        calling.send(message)
        assert listening.receive() == [message]
        return recording.sent


def test_what_was_sent_once_is_worth_nothing_again() -> None:
    session = recorded({"verdict": "again"})
    one, other = socket.socketpair()
    with one, other:
        listening = Link(one, SECRET.encode(), listens=True)
        other.sendall(session)
        assert listening.receive() == [] and listening.closed and not listening.proven
    with sides() as (listening, calling):
        exchange(listening, calling)
        calling.send({"said": "twice"})
        frame = listening.socket.recv(1 << 16, socket.MSG_PEEK)
        assert listening.receive() == [{"said": "twice"}]
        calling.socket.send(frame)
        assert listening.receive() == [] and listening.closed


def test_what_is_sent_back_is_worth_nothing() -> None:
    with sides() as (listening, calling):
        exchange(listening, calling)
        listening.send({"mine": 1})
        listening.socket.setblocking(False)
        calling.socket.send(calling.socket.recv(1 << 16))
        assert listening.receive() == [] and listening.closed


@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_any_bytes_from_a_stranger_cost_only_its_connection(chunks: list[bytes], listens: bool) -> None:
    one, other = socket.socketpair()
    with one, other:
        link = Link(one, SECRET.encode(), listens=listens, rank=1)
        for chunk in chunks:
            other.send(chunk)
            assert link.receive() == [] or not chunk
        assert not link.proven
        assert link.closed or sum(map(len, chunks)) < 72


@pytest.mark.parametrize("payload", [b"1", b"{", b"[" * 60_000, b"\xff", b'{"a": 1'])
def test_a_proven_peer_s_nonsense_costs_its_connection_too(payload: bytes) -> None:
    with sides() as (listening, calling):
        exchange(listening, calling)
        calling._frame(payload)
        assert listening.receive() == [] and listening.closed


def test_strangers_have_few_places_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener("127.0.0.1", SECRET.encode(), world_size=2)
    with contextlib.closing(listener), contextlib.ExitStack() as stack:
        come = []
        for _ in range(140):
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.port), timeout=10))
            come += listener.accept()
        assert len(come) == 140 and listener.overdue() == come[:12], "the oldest go first"
        for link in come[:12]:
            link.close()
        assert listener.overdue() == []
        later = time.monotonic() + 11
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert listener.overdue() == come[12:]
        for link in come:
            link.close()


def strangers(address: tuple[str, int], number: int) -> int:
    """Connect `number` times and misbehave; how many connections were taken."""
    rng, held, taken = random.Random(0), list[socket.socket](), 0
    session = recorded({"verdict": {"ranks": [1], "line": "a stranger says goodbye"}})
    hello = session[:36]
    for _ in range(number):
        try:
            stranger = socket.create_connection(address, timeout=10)
        except OSError:
            continue
        taken += 1
        kind = rng.randrange(8)
        with contextlib.suppress(OSError):  # it may be dropped before it has said all
            if kind == 0:
                stranger.sendall(rng.randbytes(rng.randrange(1, 500)))
            elif kind == 1:
                stranger.sendall(session)
            elif kind == 2:
                stranger.sendall(hello + b"\xff\xff\xff\xff" + rng.randbytes(1000))
            elif kind == 3:
                stranger.sendall(hello + bytes(4) + rng.randbytes(32) + session[72:])
            elif kind == 4:
                stranger.sendall(stranger.recv(32) + rng.choice([bytes(3), bytes(4), b"\xff\xff\xff\xff" + bytes(36)]))
            elif kind == 5:
                stranger.sendall(
                    json.dumps({"token": "", "verdict": {"ranks": [1], "line": "bye"}}).encode() + b"\n1\n"
                )
            elif kind == 6:
                stranger.sendall(hello[: rng.randrange(36)])
                held.append(stranger)
        if kind < 6 or len(held) > 200:
            (stranger if kind < 6 else held.pop(0)).close()
    for stranger in held:
        stranger.close()
    return taken


def test_a_run_that_strangers_disturb_ends_in_the_same_adapter(make_config: Callable[..., Config]) -> None:
    disturbed = make_config(
        **{
            **TWO_STEPS, "method.ball": "frobenius", "train.optimizer": "adamw", "train.lr": 1e-3,
            "train.adam_eps": 1e-6, "train.epochs": max(4, STRANGERS // 60), "train.global_batch": 8,
            "train.rank_timeout": 30.0,
        }
    )  # fmt: skip
    weights, _ = plain_loop(disturbed, anit)
    port = ranks.free_port()
    processes = ranks.start(2, disturbed, port=port, **{SECRET_VARIABLE: SECRET})
    store = dist.PrefixStore(
        "watchdog-1", dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    )
    host, watching, given_out = json.loads(store.get("address"))
    assert (host, given_out) == ("127.0.0.1", ""), "a launcher's secret is not in the store"
    taken = strangers((host, watching), STRANGERS)
    assert all(process.exitcode is None for process in processes), "the run ended before the strangers did"
    print(f"{taken} of {STRANGERS} strangers' connections were taken")
    assert taken > 0.9 * STRANGERS
    ranks.finish(processes, disturbed)
    assert difference(disturbed, weights) <= 1e-5


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2500, reason="too few file descriptors")
def test_rank_0_hears_a_thousand_peers(tmp_path: Path) -> None:
    program = Program(Path(__file__).with_name("thousand_peers.py"), 1000, 2, output=tmp_path / "said")
    assert program.wait(120) == 0, program.said()
    print(program.said())
    assert json.loads(program.said())["heard"] == 1000
