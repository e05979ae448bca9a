"""Ranks: who this process is, how it finds the others, and the few collectives the trainer needs.

`init()` works alone, under the deepspeed launcher, torchrun, ssh and srun alike, and `watched()` is the same with a
watchdog over it. Every function here also works before them and on one rank, where it does nothing and costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import platform
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from anit_ds.errors import InputError, RunFailed
from anit_ds.ranks.device import device, on_gpu, use_gpu_of
from anit_ds.ranks.environment import Ranks, ranks_from
from anit_ds.ranks.watchdog import Watchdog

__all__ = [
    "Ranks", "Watchdog", "all_gather_objects", "all_reduce_sum", "any_rank", "barrier", "broadcast_object", "device",
    "end", "from_main", "heard_anywhere", "in_step", "init", "main_first", "nodes", "out_of_step", "rank",
    "ranks_from", "ranks_here", "watched", "world_size",
]  # fmt: skip

T = TypeVar("T")

# A second group on gloo: agreeing on a flag between CPUs must not wait for the device's queue.
_cpu_group: Any = None


# Where the ranks met, and the number of the `watched` block they are in.
_store: Any = None
_watched = 0
# Work on one rank may take hours while the others wait; who waits in vain is ended by the watchdog.
_NEVER = 365 * 24 * 3600.0


def init(timeout_seconds: float = 1800.0) -> Ranks:
    """Join the process group that the environment describes (NCCL on GPUs, gloo on CPUs); with none, be the only rank.

    `timeout_seconds` bounds the wait for the other ranks to appear, and any collective after that. A second call only
    returns the answer again. Raises InputError for variables that are set in part, or do not fit each other or the
    visible GPUs.
    """
    ranks = _meet(timeout_seconds)
    _join(ranks, timeout_seconds)
    return ranks


@contextmanager
def watched(rank_timeout: float, log_dir: str | Path | None = None) -> Iterator[Watchdog]:
    """`init`, with a watchdog over every rank from the moment that all have appeared to the end of the block.

    It ends the process when a rank is dead, failed, or has not moved for `rank_timeout` seconds, and so collectives
    have no time limit of their own. Raises what `init` and `Watchdog` raise.
    """
    global _watched
    ranks = _meet(1800.0)
    _watched += 1
    store = None if ranks.world_size == 1 else dist.PrefixStore(f"watchdog-{_watched}", _store)
    watchdog = Watchdog(ranks, store, timeout_seconds=rank_timeout, log_dir=log_dir)
    try:
        with watchdog.working():
            _join(ranks, _NEVER)
        yield watchdog
    finally:
        watchdog.stop()


def _meet(timeout_seconds: float) -> Ranks:
    """Wait for the other ranks to appear."""
    global _store
    ranks = ranks_from(os.environ)
    import deepspeed  # noqa: F401 (seconds in which no other thread may get to speak for this rank)

    if dist.is_initialized() and _store is None:
        _store = dist.distributed_c10d._get_default_store()  # a program of its own has made the group
    elif _store is None:
        # A store inside the process takes no port, so runs side by side cannot collide on one.
        _store = dist.HashStore() if ranks.world_size == 1 else _rendezvous(timedelta(seconds=timeout_seconds))
    return ranks


def _rendezvous(timeout: timedelta) -> Any:
    """The store where the ranks have met. In a thread, because it waits where Python's signal handlers do not run, and
    a second Ctrl-C is to end that. Raises RunFailed where rank 0 cannot have its port."""
    came: list[Any] = []

    def meet() -> None:
        try:
            came.append(next(rendezvous("env://", timeout=timeout))[0])
        except Exception as error:  # raised below, by the thread that asked
            came.append(error)

    waiting = threading.Thread(target=meet, daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.2)
    (found,) = came
    if isinstance(found, dist.DistNetworkError) and "EADDRINUSE" in str(found):
        raise RunFailed(f"MASTER_PORT: {os.environ['MASTER_PORT']} is taken on this machine; choose another one")
    if isinstance(found, Exception):
        raise found
    return found


def _join(ranks: Ranks, timeout_seconds: float) -> None:
    global _cpu_group
    if dist.is_initialized():
        if _cpu_group is None and dist.get_backend() != "gloo":  # a program of its own has made the group
            _cpu_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        return
    import deepspeed

    gpu = on_gpu()
    if gpu:
        use_gpu_of(ranks.local_rank)
    else:
        # Compiling this shared-memory all-reduce takes 45 s, and a kill meanwhile leaves a lock that hangs every
        # later run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if gpu else "gloo", timedelta(seconds=timeout_seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group(backend, store=_store, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout)
        # With auto discovery DeepSpeed would look for mpi4py where a variable is missing.
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    _cpu_group = dist.new_group(backend="gloo", timeout=timeout) if gpu else dist.group.WORLD
    atexit.register(_leave)


def _leave() -> None:
    """Destroy the process groups, and gloo's threads with them, while the interpreter still stands.

    A thread may still have to let go of the last collective's tensor; needing the interpreter for that after it is
    gone, it aborts a process that ended well ("terminate called without an active exception"). Only the destructor of
    a group waits for its threads, so nothing may hold a group any more.
    """
    global _cpu_group, _store
    if not dist.is_initialized():
        return
    import deepspeed

    _cpu_group = _store = None
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


def heard_anywhere(flag: bool) -> bool:
    """True on every rank soon after it is true on one, and from then on. Ranks need not call it together."""
    if world_size() == 1:
        return flag
    heard = f"heard-{_watched}"
    if flag:
        _store.set(heard, "1")
    return flag or bool(_store.check([heard]))


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


def nodes() -> Counter[str]:
    """The machines of the run, and how many ranks each has. All ranks call it together."""
    return Counter(all_gather_objects(platform.node()))


def ranks_here() -> int:
    """How many ranks this machine has. All ranks call it together."""
    return nodes()[platform.node()]


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


def in_step(model: nn.Module) -> bool:
    """Whether a pass of one rank is a pass of all, because it gathers weights that ZeRO 3 has partitioned."""
    first = next(model.parameters())
    return world_size() > 1 and hasattr(first, "ds_id") and not getattr(first, "_anit_whole", False)


@contextmanager
def out_of_step(model: nn.Module) -> Iterator[None]:
    """Inside, `in_step` is false: the weights are whole on every rank."""
    first: Any = next(model.parameters())
    first._anit_whole = True
    try:
        yield
    finally:
        del first._anit_whole
