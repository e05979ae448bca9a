"""Ranks: who this process is, how it finds the others, and the few collectives the trainer needs.

`init()` works alone, under the deepspeed launcher, torchrun, ssh and srun alike. Every function here also works before
`init` and on one rank, where it does nothing and costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from anit_ds.errors import InputError
from anit_ds.ranks.device import device, on_gpu, use_gpu_of
from anit_ds.ranks.environment import Ranks, ranks_from
from anit_ds.ranks.watchdog import Watchdog

__all__ = [
    "Ranks", "Watchdog", "all_gather_objects", "all_reduce_sum", "any_rank", "barrier", "broadcast_object", "device",
    "end", "from_main", "init", "logger", "main_first", "rank", "ranks_from", "world_size",
]  # fmt: skip

T = TypeVar("T")

# A second group on gloo: agreeing on a flag between CPUs must not wait for the device's queue.
_cpu_group: Any = None


def init(timeout_seconds: float = 1800.0) -> Ranks:
    """Join the process group that the environment describes (NCCL on GPUs, gloo on CPUs); with none, be the only rank.

    `timeout_seconds` bounds the wait for the other ranks to appear, and any collective after that. A second call only
    returns the answer again. Raises InputError for variables that are set in part, or do not fit each other or the
    visible GPUs.
    """
    global _cpu_group
    ranks = ranks_from(os.environ)
    if dist.is_initialized():
        return ranks
    gpu = on_gpu()
    if gpu:
        use_gpu_of(ranks.local_rank)
    import deepspeed

    if not gpu:
        # Compiling this shared-memory all-reduce takes 45 s, and a kill meanwhile leaves a lock that hangs every
        # later run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if gpu else "gloo", timedelta(seconds=timeout_seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ranks.world_size == 1:
            # A store inside the process takes no port, so runs side by side cannot collide on one.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        # With auto discovery DeepSpeed would look for mpi4py where a variable is missing.
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    _cpu_group = dist.new_group(backend="gloo", timeout=timeout) if gpu else dist.group.WORLD
    atexit.register(_leave)
    return ranks


def _leave() -> None:
    """Destroy the process groups, and gloo's threads with them, while the interpreter still stands.

    A thread may still have to let go of the last collective's tensor; needing the interpreter for that after it is
    gone, it aborts a process that ended well ("terminate called without an active exception"). Only the destructor of
    a group waits for its threads, so nothing may hold a group any more.
    """
    global _cpu_group
    if not dist.is_initialized():
        return
    import deepspeed

    _cpu_group = None
    deepspeed.comm.destroy_process_group()  # which also forgets DeepSpeed's own references
    gc.collect()


def end(code: int) -> None:
    """End this process with the exit code now if it is one of several ranks; alone, return.

    It skips the interpreter's teardown, which no rank that has trained may risk (see `_leave`): autograd's hooks keep
    a DeepSpeed engine, and with it the engine's process groups, alive to the very end.
    """
    if world_size() == 1:
        return
    _leave()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def logger() -> logging.Logger:
    """The run's log: a file a rank, and the terminal on rank 0."""
    return logging.getLogger("anit")


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier(group=_cpu_group)


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one of them."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, group=_cpu_group)
    return bool(votes.item())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather_objects(value: T) -> list[T]:
    """Every rank's value, on every rank, in the ranks' order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, group=_cpu_group)
    return box[0]


def from_main(make: Callable[[], T]) -> T:
    """What `make()` returns on rank 0, on every rank. Its InputError is raised on every rank."""
    value, complaint = None, None
    if rank() == 0:
        try:
            value = make()
        except InputError as error:
            complaint = str(error)
    value, complaint = broadcast_object((value, complaint))
    if complaint is not None:
        raise InputError(complaint)
    return cast(T, value)


def main_first(make: Callable[[], T]) -> T:
    """Run `make()` on rank 0, and on the others once it is done there: it may then find files that are ready."""
    made: list[T] = []
    from_main(lambda: made.append(make()))
    return made[0] if made else make()
