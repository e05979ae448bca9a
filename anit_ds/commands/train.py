"""`anit train`: a run trained, alone or as one of the ranks that a launcher started."""

from __future__ import annotations

from pathlib import Path

import click

from anit_ds.commands.arguments import config_and_overrides, fresh, ignored_local_rank


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

    summary = training.train(settings, fresh=fresh, signals=signals)
    if summary is not None and distributed.rank() == 0:
        click.echo(describe_summary(summary, Path(settings.out)))
