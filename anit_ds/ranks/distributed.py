"""Ranks: who this process is, how it finds the others, and the few collectives the trainer needs.

`init()` works alone, under the deepspeed launcher, torchrun, ssh and srun alike. Every function here also works before
`init` and on one rank, where it does nothing and costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from anit_ds.errors import InputError
from anit_ds.ranks.watchdog import Watchdog

__all__ = [
    "Ranks", "Watchdog", "all_gather_objects", "all_reduce_sum", "any_rank", "barrier", "broadcast_object", "device",
    "end", "from_main", "gather_objects", "init", "logger", "main_first", "rank", "ranks_from", "world_size",
]  # fmt: skip

# Asked before deepspeed is imported anywhere: without an answer it searches for an accelerator and warns.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

T = TypeVar("T")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")

# A second group on gloo: agreeing on a flag between CPUs must not wait for the device's queue.
_cpu_group: Any = None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that prints and writes shared files."""
        return self.rank == 0


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
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        index = _gpu_index(ranks.local_rank, torch.cuda.device_count())
        torch.cuda.set_device(index)
        os.environ["LOCAL_RANK"] = str(index)  # which DeepSpeed takes for the device's index
    import deepspeed

    if not on_gpu:
        # Compiling this shared-memory all-reduce takes 45 s, and a kill meanwhile leaves a lock that hangs every
        # later run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(seconds=timeout_seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ranks.world_size == 1:
            # A store inside the process takes no port, so runs side by side cannot collide on one.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        # With auto discovery DeepSpeed would look for mpi4py where a variable is missing.
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    _cpu_group = dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD
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


def ranks_from(environment: MutableMapping[str, str]) -> Ranks:
    """The ranks as a launcher or srun described them in `environment`; one rank when none did.

    Writes RANK, LOCAL_RANK and WORLD_SIZE where they are missing, and under srun also MASTER_ADDR (the step's first
    node) and MASTER_PORT (from the job id). Raises InputError for variables that are set in part or contradict each
    other.
    """
    given = [name for name in _RANK_VARIABLES if name in environment]
    if not given:
        environment.update(_from_srun(environment) or {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    elif len(given) < len(_RANK_VARIABLES):
        missing = " and ".join(name for name in _RANK_VARIABLES if name not in given)
        raise InputError(
            f"the environment sets {' and '.join(given)} but not {missing}: start with launch/local.sh, ssh.sh or "
            "slurm.sbatch, or set all of them, or none for one process"
        )
    values = {name: environment[name] for name in _RANK_VARIABLES}
    try:
        ranks = Ranks(*(int(values[name]) for name in _RANK_VARIABLES))
    except ValueError as error:
        raise InputError(f"the environment's RANK, LOCAL_RANK and WORLD_SIZE must be numbers, not {values}") from error
    if not 0 <= ranks.local_rank <= ranks.rank < ranks.world_size:
        raise InputError(f"the environment describes ranks that cannot be: {values}")
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if ranks.world_size > 1 and absent:
        raise InputError(f"the environment has {ranks.world_size} ranks but no {' and no '.join(absent)} to meet at")
    return ranks


def _from_srun(environment: MutableMapping[str, str]) -> dict[str, str] | None:
    """The variables of a task of srun, or None elsewhere.

    Only srun counts a step's tasks. A bare sbatch or salloc shell has SLURM_PROCID and SLURM_NTASKS too, and would
    wait there for ranks that nobody starts.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return None
    found = {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
    }
    if not environment.get("MASTER_ADDR"):
        found["MASTER_ADDR"] = _first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not environment.get("MASTER_PORT"):
        found["MASTER_PORT"] = str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000)
    return found


def _first_host(nodes: str) -> str:
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        raise InputError("srun started several tasks but scontrol is not found; set MASTER_ADDR to the first node")
    names = subprocess.run([scontrol, "show", "hostnames", nodes], capture_output=True, text=True, check=False).stdout
    if not names.strip():
        raise InputError(f"scontrol cannot read the node list {nodes!r}; set MASTER_ADDR to the first node")
    return names.split()[0]


def _gpu_index(local_rank: int, visible: int) -> int:
    if local_rank < visible:
        return local_rank
    if visible == 1 and "SLURM_STEP_NUM_TASKS" in os.environ:
        return 0  # srun --gpus-per-task shows each task only its own
    raise InputError(
        f"local rank {local_rank} has no GPU: {visible} visible on this node; start fewer ranks a node, or look at "
        "CUDA_VISIBLE_DEVICES"
    )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """This rank's device."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


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


def gather_objects(value: T) -> list[T] | None:
    """Every rank's value in the ranks' order on rank 0, None elsewhere."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, group=_cpu_group)
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
