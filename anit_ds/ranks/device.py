"""Which device this process computes on, asked here and nowhere else: batches and engine meet on the same one."""

from __future__ import annotations

import os

import torch

from anit_ds.errors import InputError


def on_gpu() -> bool:
    """Whether a GPU is used: one is visible, and DS_ACCELERATOR, which DeepSpeed obeys, does not say cpu."""
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()


# Asked before deepspeed is imported anywhere: without an answer it searches for an accelerator and warns.
if not on_gpu():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def use_gpu_of(local_rank: int) -> None:
    """Make this rank's GPU the current one. Raises InputError where it has none."""
    index = _gpu_index(local_rank, torch.cuda.device_count())
    torch.cuda.set_device(index)
    os.environ["LOCAL_RANK"] = str(index)  # which DeepSpeed takes for the device's index


def _gpu_index(local_rank: int, visible: int) -> int:
    if local_rank < visible:
        return local_rank
    if visible == 1 and "SLURM_STEP_NUM_TASKS" in os.environ:
        return 0  # srun --gpus-per-task shows each task only its own
    raise InputError(
        f"local rank {local_rank} has no GPU: {visible} visible on this node; start fewer ranks a node, or look at "
        "CUDA_VISIBLE_DEVICES"
    )
