"""`anit train`: a run trained, alone or as one of the ranks that a launcher started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anit_ds.commands.arguments import config_and_overrides, fresh, ignored_local_rank

if TYPE_CHECKING:
    from anit_ds.config import Config
    from anit_ds.data.prompts import Encoded


@click.command(short_help="Train, or go on from the last checkpoint.")
@config_and_overrides()
@fresh
@ignored_local_rank
def train(config: str, overrides: tuple[str, ...], fresh: bool) -> None:
    """Train CONFIG, alone or under a launcher (the same command); go on from the last good checkpoint if there is
    one."""
    from anit_ds.ranks.signals import Signals

    signals = Signals()  # before the imports, which take seconds: a scheduler's signal must find somebody who listens
    from anit_ds.configfile import load_config

    settings = load_config(config, overrides)
    from anit_ds import training
    from anit_ds.commands.describe import describe_summary
    from anit_ds.ranks import distributed

    summary = training.train(settings, fresh=fresh, signals=signals, forecast=_forecast)
    if summary is not None and distributed.rank() == 0:
        click.echo(describe_summary(summary, Path(settings.out)))


def _forecast(config: Config, samples: Sequence[Encoded], ranks_here: int) -> str:
    """What rank 0 says before it loads the weights: a few seconds, in which the other ranks load theirs."""
    from anit_ds.modeling import resolve_dtype
    from anit_ds.planning.line import forecast_line
    from anit_ds.ranks import distributed
    from anit_ds.ranks.memory import memory_bytes

    gpu = distributed.device().type != "cpu"
    dtype = resolve_dtype(config.model.dtype, distributed.device().type)
    memory = memory_bytes() // (1 if gpu else ranks_here)
    return forecast_line(config, samples, dtype, ranks=distributed.world_size(), memory=memory, gpu=gpu)
