"""The line that `anit train` begins with: what a rank will hold, whether it fits, on a GPU how long a step takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anit_ds.config import Config
from anit_ds.data.prompts import Encoded
from anit_ds.errors import InputError, first_line
from anit_ds.planning.footprint import model_settings
from anit_ds.planning.forecast import Forecaster
from anit_ds.planning.simulation import BANDWIDTH, GB, TFLOPS, Cluster
from anit_ds.planning.workload import Workload

_WORTH_IT = 50_000_000  # weights; a smaller model fits anywhere, and trains before it is forecast


def forecast_line(
    config: Config, samples: Sequence[Encoded], dtype: torch.dtype, *, ranks: int, memory: int, gpu: bool
) -> str:
    """One line on a run, from its training samples and the model's config.json; empty for a small model.

    memory: bytes of a rank's GPU, or a rank's share of a machine without one. A model that cannot be counted is said
    to be.
    """
    try:
        settings = model_settings(config.model)
        if _about(settings) < _WORTH_IT:
            return ""
        cluster = Cluster(ranks, memory / GB, BANDWIDTH, TFLOPS)
        made = Forecaster(Workload.of_samples(samples), dtype).forecast(config, cluster)
    except InputError as error:
        return f"no forecast: {error}"
    except Exception as error:  # a model's own code on tensors without values: what it dies of here ends no training
        return f"no forecast: {type(error).__name__}: {first_line(error)}"
    where = "a GPU" if gpu else "a rank's share of this machine"
    told = f"forecast: {made.bytes / GB:.1f} GB a rank, most of it {max(made.holds, key=made.holds.__getitem__)}"
    if config.method.schedule == "auto":  # to count each schedule takes longer than such a line may
        told += ", counted as schedule three_pass"
    if gpu:
        told += f", {made.step.seconds:.2g} s a step on GPUs that sustain {TFLOPS:g} TFLOP/s"
    if made.fits(cluster):
        return f"{told}; {where} has {cluster.memory:.3g} GB"
    return f"{told}; it does not fit: {where} has {cluster.memory:.3g} GB. `anit plan` says what to change first"


def _about(settings: object) -> int:
    """Weights of a model, roughly: twelve squares a layer, and the table."""
    width, layers, vocabulary = (
        int(getattr(settings, name, 0)) for name in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    return 12 * width**2 * layers + vocabulary * width
