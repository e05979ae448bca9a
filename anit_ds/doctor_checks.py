"""What `anit doctor` looks at on this machine: what works, what does not, and the cure.

Every check is a function that gives findings and can be called by itself. An error (and only an error) means that
training will fail here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from anit_ds.errors import first_line

# What the tests were last run with; newer versions usually work, and are the first suspects when something does not.
TESTED = {
    "torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0", "peft": "0.21.2", "datasets": "5.2.0",
    "triton": "3.7.1",
}  # fmt: skip
_GIGABYTE = 1e9
_RANK = """
from anit_ds.ranks import distributed
import torch
ranks = distributed.init(timeout_seconds=60)
total = distributed.all_reduce_sum(torch.ones(1, device=distributed.device()))
assert total.item() == ranks.world_size, total
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """`error` when training cannot work like this, `warning` when it may not; then `cure` says what would help."""

    level: Literal["ok", "warning", "error"]
    what: str
    text: str
    cure: str = ""

    @classmethod
    def ok(cls, what: str, text: str) -> Finding:
        return cls("ok", what, text)

    @classmethod
    def warning(cls, what: str, text: str, cure: str) -> Finding:
        return cls("warning", what, text, cure)

    @classmethod
    def error(cls, what: str, text: str, cure: str) -> Finding:
        return cls("error", what, text, cure)


def examine(out: str | Path) -> Iterator[Finding]:
    """Every finding, as it is made. `out` is where runs would be written."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_packages,
        check_accelerator,
        check_kernel,
        check_ranks,
        check_extensions_lock,
        lambda: check_disk(out),
        check_port,
        check_hub_cache,
        check_launchers,
    ]
    for check in checks:
        yield from check()


def check_packages() -> Iterator[Finding]:
    """Python, and each required package: there, new enough, and beside the version that was tested."""
    yield Finding.ok("python", f"{sys.version.split()[0]} at {sys.executable}")
    for line in requires("anit-ds") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": "triton"}):
            continue
        name, wanted, optional = needed.name, needed.specifier, needed.marker is not None
        try:
            here = version(name)
        except PackageNotFoundError:
            if optional:
                yield Finding.ok(name, "not installed; the PyTorch reference is used in place of the kernels")
            else:
                yield Finding.error(name, f"not installed, {wanted} needed", f"pip install '{name}{wanted}'")
            continue
        if not wanted.contains(here, prereleases=True):
            yield Finding.error(name, f"{here} is too old, {wanted} needed", f"pip install -U '{name}{wanted}'")
        elif tested := TESTED.get(name):
            same = here.split("+")[0] == tested
            yield Finding.ok(name, here if same else f"{here} (tested with {tested})")


def check_accelerator() -> Iterator[Finding]:
    """Which GPUs there are and whether they compute bfloat16, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield Finding.error(
                "accelerator",
                "nvidia-smi is here but torch sees no GPU",
                "install the CUDA build of torch, look at CUDA_VISIBLE_DEVICES and at the driver",
            )
        else:
            yield Finding.ok("accelerator", f"none, {torch.get_num_threads()} CPU threads on gloo")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / _GIGABYTE:.0f} GB"
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        text = f"cuda:{index} {properties.name}, {memory}, {'bfloat16' if native else 'no bfloat16: float32 is used'}"
        yield Finding.ok("accelerator", text)


def check_kernel() -> Iterator[Finding]:
    """Do the Triton kernels compile on this GPU and agree with the PyTorch reference? Without a GPU none is used."""
    import torch

    if not torch.cuda.is_available():
        yield Finding.ok("kernel", "the PyTorch reference is used (no GPU)")
        return
    try:
        import triton

        from anit_kernels import nrm_init
    except ImportError as error:
        yield Finding.warning("kernel", f"the slower PyTorch reference is used ({error})", "pip install triton")
        return

    def perturbed(device: str) -> torch.Tensor:
        where = torch.ones(2, 3, dtype=torch.bool, device=device)
        ids = torch.arange(2, device=device)
        embeddings = torch.zeros(2, 3, 64, device=device)
        return nrm_init(embeddings, where, where, 1, 0, ids, 1.0, torch.zeros(2, device=device)).cpu()

    try:
        difference = float((perturbed("cuda") - perturbed("cpu")).abs().max())
    except Exception as error:
        yield Finding.error(
            "kernel",
            f"does not compile with Triton {triton.__version__}: {first_line(error)}",
            "ANIT_KERNEL=reference trains without it; update triton together with torch",
        )
        return
    if difference > 1e-5:
        yield Finding.error("kernel", f"differs from the reference by {difference:.1e}", "ANIT_KERNEL=reference")
    else:
        yield Finding.ok("kernel", f"compiles with Triton {triton.__version__} and agrees with the reference")


def check_ranks(timeout: float = 120) -> Iterator[Finding]:
    """Start two processes that must find each other and add a number: NCCL where there are two GPUs, else gloo."""
    import torch

    backend = "NCCL" if torch.cuda.device_count() > 1 else "gloo"
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if backend == "gloo":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        both = [
            subprocess.Popen(
                [sys.executable, "-c", _RANK],
                stdout=said,
                stderr=said,
                env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in ("0", "1")
        ]
        try:
            codes = [process.wait(max(1.0, timeout - (time.monotonic() - started))) for process in both]
        except subprocess.TimeoutExpired:
            yield Finding.error(
                "ranks",
                f"two {backend} ranks did not meet within {timeout:g} s",
                "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to an interface that is up: ip -br addr",
            )
            return
        finally:
            for process in both:
                process.kill()
                process.wait()
        said.seek(0)
        lines = said.read().strip().splitlines()
    if any(codes):
        yield Finding.error(
            "ranks",
            f"two {backend} ranks failed: {lines[-1] if lines else 'no message'}",
            "see GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME in launch/clusters",
        )
    else:
        yield Finding.ok("ranks", f"two {backend} ranks talk ({time.monotonic() - started:.0f} s with start-up)")


def check_extensions_lock(stale_seconds: float = 900) -> Iterator[Finding]:
    """A killed compilation of a DeepSpeed extension leaves a lock on which every later run waits in silence."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = Path(given) if given else Path.home() / ".cache" / "torch_extensions"
    locks = sorted(cache.rglob("lock")) if cache.is_dir() else []
    for lock in locks:
        age = time.time() - lock.stat().st_mtime
        if age > stale_seconds:
            yield Finding.error("extensions", f"stale lock {lock}, {age / 3600:.1f} h old", f"rm {lock}")
        else:
            yield Finding.warning(
                "extensions",
                f"{lock}: something is compiling, or was killed {age:.0f} s ago",
                f"if nothing compiles: rm {lock}",
            )
    if not locks:
        yield Finding.ok("extensions", f"no stale lock in {cache}")


def check_disk(out: str | Path, needed: float = 1 * _GIGABYTE, wished: float = 10 * _GIGABYTE) -> Iterator[Finding]:
    """Can runs be written to `out`, and is there room? `needed` and `wished` are free bytes."""
    folder = Path(out).absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"\0" * 65536)
    except OSError as error:
        yield Finding.error("disk", f"cannot write into {folder} ({error.strerror})", "choose another out=")
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIGABYTE:.1f} GB free in {folder}"
    if free < needed:
        yield Finding.error(
            "disk",
            f"{text}, at least {needed / _GIGABYTE:.1f} needed",
            "free some, or choose another out=; train.keep bounds the checkpoints",
        )
    elif free < wished:
        yield Finding.warning("disk", text, "an exported --merge model needs as much as its base")
    else:
        yield Finding.ok("disk", text)


def check_port() -> Iterator[Finding]:
    """A MASTER_PORT in the environment that something else listens on."""
    given = os.environ.get("MASTER_PORT")
    if not given:
        yield Finding.ok("port", "MASTER_PORT is not set: the launchers choose one")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(given)))
        except (OSError, ValueError, OverflowError) as error:
            yield Finding.error(
                "port",
                f"MASTER_PORT={given} cannot be used ({error})",
                "unset MASTER_PORT: the launchers choose a free one",
            )
            return
    yield Finding.ok("port", f"MASTER_PORT={given} is free")


def check_hub_cache() -> Iterator[Finding]:
    """Where transformers keeps models, whether it can be written, and whether the hub may be asked."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    offline = "offline: only what is in it loads" if constants.HF_HUB_OFFLINE else "models are fetched when missing"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            models = sum(1 for _ in cache.glob("models--*"))
    except OSError as error:
        yield Finding.error(
            "hub cache", f"{cache} cannot be written ({error.strerror})", "set HF_HOME to a folder of yours"
        )
        return
    yield Finding.ok("hub cache", f"{cache}, {models} model(s), {offline}")


def check_launchers() -> Iterator[Finding]:
    """What launch/ssh.sh and launch/slurm.sbatch need."""
    pdsh, srun = shutil.which("pdsh"), shutil.which("srun")
    yield Finding.ok("ssh", f"pdsh at {pdsh}" if pdsh else "no pdsh here; launch/ssh.sh alone needs it")
    if srun is None:
        yield Finding.ok("slurm", "no srun here; launch/slurm.sbatch alone needs it")
        return
    try:
        answer = subprocess.run(["sinfo", "-h", "-o", "%D nodes in %P"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding.warning(
            "slurm", f"srun at {srun}, but sinfo does not answer ({type(error).__name__})", "ask whether slurmctld runs"
        )
        return
    if answer.returncode == 0:
        yield Finding.ok("slurm", ", ".join(answer.stdout.split("\n")).strip(", "))
    else:
        yield Finding.warning("slurm", f"srun at {srun}, but no cluster answers", "see sinfo; is SLURM_CONF set?")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
