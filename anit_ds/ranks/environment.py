"""Who this process is among the ranks of a run, as a launcher or srun wrote it into the environment."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass

from anit_ds.errors import InputError, shown

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    local_rank: int
    world_size: int


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
    port = environment.get("MASTER_PORT", "")
    if ranks.world_size > 1 and not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"the environment's MASTER_PORT must be a port from 1 to 65535, not {shown(port)}")
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
        # Below 32768, where systems begin to give out ports by themselves; a job's steps may run side by side.
        job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        found["MASTER_PORT"] = str(20000 + (job + 7919 * step) % 12000)
    return found


def _first_host(nodes: str) -> str:
    """The first of some nodes, by its address where its name does not resolve: torch would look for it for minutes."""
    if shutil.which("scontrol") is None:
        raise InputError("srun started several tasks but scontrol is not found; set MASTER_ADDR to the first node")
    names = _scontrol("hostnames", nodes).split()
    if not names:
        raise InputError(f"scontrol cannot read the node list {nodes!r}; set MASTER_ADDR to the first node")
    address = re.search(r"NodeAddr=(\S+)", _scontrol("node", names[0]))
    for host in (names[0], *(address.groups() if address else ())):
        with suppress(OSError):
            socket.getaddrinfo(host, None)
            return host
    raise InputError(f"the first node's name, {names[0]}, does not resolve; set MASTER_ADDR to its address")


def _scontrol(*shown: str) -> str:
    return subprocess.run(["scontrol", "show", *shown], capture_output=True, text=True, check=False).stdout
