"""The trainer: `train(config)` runs or resumes one training on DeepSpeed."""

from __future__ import annotations

from anit_ds.training.loop import Trainer, train

__all__ = ["Trainer", "train"]
