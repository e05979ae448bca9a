"""Ranks for a benchmark: processes of this machine that find each other, each with one thread."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returns on rank 0; it runs on every rank, in a process of its own.

    Raises SystemExit where a rank fails.
    """
    context = multiprocessing.get_context("spawn")
    result = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, result, function, arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a rank of {ranks} failed: exit codes {[process.exitcode for process in processes]}")
    return result.get()


def _rank(rank: int, ranks: int, port: int, result: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    torch.set_num_threads(1)
    made = function(*arguments)
    if rank == 0:
        result.put(made)
