"""`anit demo`: the whole way on a model and data that come as Python packages, each part timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Made = TypeVar("Made")


@click.command(short_help="The whole way in minutes; nothing to prepare.")
@click.option("--out", default="runs/demo", show_default=True, help="The run's folder; emptied first.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
def demo(out: str, dtype: str) -> None:
    """The whole way on a model and data that come as packages: noisy set, F1 before, training, F1 after, the
    adapter."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries that ask it are imported
    from anit_ds.commands.describe import describe_data, describe_summary
    from anit_ds.data.rundata import RunData
    from anit_ds.demo import cache_folder, demo_config, prepare_data, prepare_model
    from anit_ds.folder_lock import only_writer
    from anit_ds.runfolder import RunFolder

    cache, clock = cache_folder(), Clock()
    data = clock("data", lambda: prepare_data(cache, click.echo))
    model = clock("model", lambda: prepare_model(cache, click.echo))
    config = demo_config(model, data, Path(out), dtype)
    run = RunFolder(out)
    with only_writer(run.path), run.kept_until_accepted():
        config = run.begin(config, fresh=True)
        noisy = clock("noisy set", lambda: RunData.load(config, run.data))
        run.accept()
    click.echo(describe_data(noisy, run.data) + "\n")

    from anit_ds.training import train

    summary = clock("F1 before, training, F1 after", lambda: train(config))
    if summary is None:
        return
    click.echo("\n" + describe_summary(summary, Path(out)))
    click.echo("\n".join(f"{seconds:7.1f} s  {name}" for name, seconds in clock.laps.items()))
    click.echo(
        f"\nNext: anit eval {out} --noise shuffle\n"
        f'      echo \'{{"text": "A moving film with a wonderful cast."}}\' | anit predict {out} --input -\n'
        f"      anit config > my.yaml    # every field explained; then: anit train my.yaml"
    )


class Clock:
    """Seconds of each named part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}

    def __call__(self, name: str, part: Callable[[], Made]) -> Made:
        started = time.perf_counter()
        made = part()
        self.laps[name] = time.perf_counter() - started
        return made
