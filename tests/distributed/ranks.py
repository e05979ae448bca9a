"""Real ranks for tests, each a fork of what has imported the trainer once."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing.process
import os
import random
import signal
import socket
import sys
from pathlib import Path

from forked import CONTEXT

from anit_ds.config import Config


def start(
    ranks: int,
    *configs: Config,
    die_in_save_at: int | None = None,
    stop_in: tuple[int, str] = (-1, ""),
    fail_in: tuple[int, str] = (-1, ""),
    port: int | None = None,
    **environment: str,
) -> list[multiprocessing.process.BaseProcess]:
    """Start `ranks` processes that train the configurations one after the other over gloo.

    They meet at `port` (a free one by default) and have the variables of `environment`. With `die_in_save_at` rank 0
    gets SIGKILL in the save of that step: weights and moments written, nothing else. Where it first calls MODULE:NAME a
    rank gets SIGSTOP with `stop_in`, and an error with `fail_in`.
    """
    environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, environment, configs, die_in_save_at, stop_in, fail_in))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def free_port() -> int:
    """Below the ports that the kernel gives out by itself, of which gloo takes many before rank 0 takes this one."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20000, 30000)
            probe.bind(("127.0.0.1", port))
            return port


def run(ranks: int, *configs: Config) -> None:
    """Start them, wait, and demand that every rank ends well."""
    finish(start(ranks, *configs), *configs)


def finish(processes: list[multiprocessing.process.BaseProcess], *configs: Config) -> None:
    """Wait, and demand that every rank ends well."""
    for process in processes:
        process.join(timeout=500)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * len(codes), f"exit codes {codes}\n" + "\n".join(_said(Path(configs[0].out)))


def _said(out: Path) -> list[str]:
    """The end of what each rank printed and logged."""
    files = sorted([*out.glob("rank*.out"), *out.glob("log-rank*.txt")])
    return [f"--- {file.name}\n{file.read_text()[-1500:]}" for file in files]


def _rank(
    rank: int,
    environment: dict[str, str],
    configs: tuple[Config, ...],
    die_in_save_at: int | None,
    stop_in: tuple[int, str],
    fail_in: tuple[int, str],
) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    Path(configs[0].out).mkdir(parents=True, exist_ok=True)
    with open(Path(configs[0].out) / f"rank{rank}.out", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        from anit_ds.training import train

        gc.freeze()  # what is imported is not looked through again: ZeRO 3 collects garbage in each of its starts
        if rank == 0 and die_in_save_at is not None:
            _die_in_save(die_in_save_at)
        for (its_rank, where), instead in ((stop_in, _stop), (fail_in, _fail)):
            if rank == its_rank:
                module, _, path = where.partition(":")
                *within, name = path.split(".")
                setattr(functools.reduce(getattr, within, sys.modules[module]), name, instead)
        for config in configs:
            train(config)
        sys.stdout.flush()


def _stop(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail(*_: object, **__: object) -> None:
    raise MemoryError("no room for it")


def _die_in_save(step: int) -> None:
    from anit_ds.training import checkpoint

    seal = checkpoint.seal_folder

    def die_or_seal(folder: Path, name: str, content: dict) -> None:
        if content["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seal(folder, name, content)

    checkpoint.seal_folder = die_or_seal
