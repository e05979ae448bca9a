"""How much memory this rank has: its GPU's, or without one what this machine and this process's control groups allow.

A container's or a SLURM job's limit is a control group's (cgroup), and the kernel ends whoever goes beyond it, however
much the machine itself has free.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from anit_ds.ranks.device import device, on_gpu

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The files of version 2 and of version 1: the limit, what is used, and in memory.stat the pages that can be dropped.
_FILES = (("memory.max", "memory.current", "inactive_file"),
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip


def memory_bytes() -> int:
    """What this rank's GPU has in all; without one what its machine has, which the ranks there share."""
    if on_gpu():
        return int(torch.cuda.get_device_properties(device()).total_memory)
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in limits())])


def free_bytes() -> int:
    """What is free of this rank's GPU; without one of its machine, which the ranks there share."""
    if on_gpu():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0] + cached)
    return max(0, min([int(psutil.virtual_memory().available), *(limit - used for limit, used in limits())]))


def limits(own: Path = _OWN, groups: Path = _GROUPS) -> Iterator[tuple[int, int]]:
    """(limit, what is used) in bytes of every control group that this process is in and that has a limit.

    `own` is the kernel's list of its groups, `groups` where they are mounted.
    """
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        # A limit of a group further out counts as well. A container may see its own as the root, whatever it is called.
        inside = root / path.lstrip("/")
        for group in (inside, *inside.parents):
            yield from _limit_of(group)
            if group == root:
                break


def _limit_of(group: Path) -> Iterator[tuple[int, int]]:
    for limit, used, droppable in _FILES:
        try:
            most, now = int((group / limit).read_text()), int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or "max": no limit
            continue
        yield most, now - int(stat.get(droppable, 0))
