"""Exceptions that the command line turns into one sentence: exit code 2 for wrong input, 1 for a service or a run that
fails."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection

_LONGEST_LINE, _MOST_LINES = 600, 12


class InputError(Exception):
    """One sentence for a person: the thing, where it stands (file, line, field), and what would be right.

    What is quoted in it may be of any size and hold any characters; the sentence is printable and short all the same.
    """

    def __init__(self, message: str) -> None:
        lines = message.encode("utf-8", "backslashreplace").decode("utf-8").split("\n")
        more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        super().__init__("\n".join([*map(_clipped, lines[:_MOST_LINES]), *more]))


class ServiceError(RuntimeError):
    """A remote service kept failing after all retries."""


class RunFailed(RuntimeError):
    """What was asked for cannot be had, though the input is right: what happened, and what to try where one knows."""


def first_line(error: BaseException) -> str:
    """The first line that an error says, or its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# What a field is called elsewhere (the Hugging Face Trainer, TRL, LLaMA-Factory): the whole path of ours.
_CALLED_ELSEWHERE = {
    "learning_rate": "train.lr", "per_device_train_batch_size": "train.micro_batch", "batch_size": "train.global_batch",
    "gradient_accumulation_steps": "train.global_batch", "num_train_epochs": "train.epochs", "output_dir": "out",
    "lr_scheduler_type": "train.lr_schedule", "warmup_ratio": "train.warmup", "save_steps": "train.checkpoint_every",
    "max_grad_norm": "train.grad_clip", "logging_steps": "train.log_every", "eval_steps": "eval.every",
    "gradient_checkpointing": "train.activation_checkpointing", "save_total_limit": "train.keep",
    "per_device_eval_batch_size": "eval.batch_size", "model_name_or_path": "model.name_or_path",
    "torch_dtype": "model.dtype", "attn_implementation": "model.attn", "cutoff_len": "data.max_length",
    "max_samples": "data.max_train", "lora_rank": "lora.r", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout",
    "lora_target": "lora.targets", "target_modules": "lora.targets", "rank": "lora.r",
}  # fmt: skip


def called_here(name: str) -> str | None:
    """The path of the field that other trainers call `name`."""
    return _CALLED_ELSEWHERE.get(name)


def nearest(name: str, names: Collection[str]) -> str:
    """What to say of a name that is none of these: the one that was meant, or which there are."""
    if other := called_here(name):
        return f"it is called {other} here"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def _clipped(line: str) -> str:
    """The line without its middle where it is too long: where it is wrong stands first, what would be right last."""
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[:half]} ... {line[-half:]}"


class _Shown(reprlib.Repr):
    """Values of any size and depth, in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 40
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 6

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 4096 else "an integer of thousands of digits"


def shown(value: object) -> str:
    """`repr(value)`, cut to what fits into a sentence."""
    text = _Shown().repr(value)
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"
