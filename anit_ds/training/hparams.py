"""What TensorBoard's hparams tab shows of a configuration: the fields that people compare runs by."""

from __future__ import annotations

from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config
from anit_ds.identity import identity, not_at_default

_FIELDS = (
    "model.name_or_path", "data.dataset", "noise.kind", "noise.omega", "noise.phi", "method.name", "lora.r",
    "train.epochs", "train.global_batch", "train.lr", "train.seed",
)  # fmt: skip
# Where things lie, and what is measured beside: no reason for a score.
_NO_REASON = ("data.path", "data.instructions_file", "data.columns", "lora.init_from", "eval.noises", "eval.before")


def hyperparameters(config: Config) -> dict[str, str | float | bool]:
    """These fields, those that the method reads, and whatever is not at its default, as far as they say something."""
    every = identity(config)
    of_method = [f"method.{name.rstrip('_')}" for name in sorted(METHODS[config.method.name].reads)]
    shown = {path: every.get(path) for path in [*_FIELDS, *of_method, *not_at_default(config)]}
    return {
        path: value if isinstance(value, str | int | float) else str(value)
        for path, value in shown.items()
        if value is not None and path not in _NO_REASON
    }
