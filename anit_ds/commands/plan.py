"""`anit plan`: will a run fit, how long will a step take, and what to change first where it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from anit_ds.commands.arguments import config_and_overrides

if TYPE_CHECKING:
    from anit_ds.config import Config
    from anit_ds.planning.forecast import Forecast, Forecaster
    from anit_ds.planning.simulation import Cluster
    from anit_ds.planning.workload import Workload

_GB = 1e9


@click.command(short_help="Forecast memory, time and traffic of a run, on this or other hardware.")
@config_and_overrides()
@click.option("--gpus", default="1", show_default=True, metavar="N[,N ...]", help="Ranks; several for a table.")
@click.option("--gpu-memory", type=click.FloatRange(min=0, min_open=True), default=80, show_default=True, help="GB.")
@click.option("--bandwidth", type=click.FloatRange(min=0, min_open=True), default=50, show_default=True,
              help="GB/s that a GPU has to other nodes; a node has eight.")  # fmt: skip
@click.option("--tflops", type=click.FloatRange(min=0, min_open=True), default=400, show_default=True,
              help="What a GPU sustains, not what its data sheet says.")  # fmt: skip
def plan(
    config: str, overrides: tuple[str, ...], gpus: str, gpu_memory: float, bandwidth: float, tflops: float
) -> None:
    """What CONFIG will need, from the model's config.json alone: a step of the real code on tensors without values.

    The micro-batch is the longest of the run's data, or data.max_length tokens a sample where the data are not here.
    """
    from anit_ds.configfile import load_config
    from anit_ds.modeling import dtype_name, resolve_dtype
    from anit_ds.planning.forecast import Forecaster
    from anit_ds.planning.simulation import Cluster
    from anit_ds.planning.workload import Workload

    settings = load_config(config, overrides)
    # `auto` on a GPU that is worth planning for.
    dtype = resolve_dtype("bfloat16" if settings.model.dtype == "auto" else settings.model.dtype, "cuda")
    clusters = [Cluster(ranks, gpu_memory, bandwidth, tflops) for ranks in _numbers(gpus)]
    plans = Forecaster(Workload.of(settings), dtype)
    settings = plans.decided(settings, clusters[0])
    possible, made = plans.schedules(settings, clusters[0]), plans.forecast(settings, clusters[0])
    click.echo(_head(settings, plans.workload, clusters[0], made, dtype_name(dtype)))
    click.echo(_memory(made, clusters[0]))
    click.echo(_time(made, clusters[0]))
    if len(possible) > 1:
        click.echo("\n| schedule | step | GB a rank |\n|---|---|---|")
        for name, one in possible.items():
            this = " (this one)" if name == settings.method.schedule else ""
            click.echo(f"| {name}{this} | {_seconds(one.step.seconds)} | {one.bytes / _GB:.2f} |")
    if not made.fits(clusters[0]):
        click.echo(f"\nIt does not fit into {gpu_memory:g} GB. What each change alone would make of it:")
        for change in sorted(plans.changes(settings, clusters[0]), key=lambda c: c.forecast.bytes):
            then = change.forecast
            click.echo(f"  {change.told:40} {then.bytes / _GB:8.2f} GB, a step {_seconds(then.step.seconds)}")
    if len(clusters) > 1:
        click.echo(_by_ranks(settings, plans, clusters))
    samples = settings.train.global_batch
    if idle := [f"{cluster.ranks:,}" for cluster in clusters if cluster.ranks > samples]:
        click.echo(
            f"\ntrain.global_batch is {samples}, so `anit train` refuses {' and '.join(idle)} ranks; "
            "here each of them has a sample."
        )


def _by_ranks(settings: Config, plans: Forecaster, clusters: list[Cluster]) -> str:
    """A step under each schedule on each number of ranks, the fastest in bold."""
    rows = []
    for cluster in clusters:
        found = plans.schedules(settings, cluster)
        best = min(found, key=lambda name: found[name].step.seconds)
        steps = [f"**{_seconds(f.step.seconds)}**" if n == best else _seconds(f.step.seconds) for n, f in found.items()]
        one = found[settings.method.schedule]
        alone = f"{_seconds(one.step.compute_seconds)} | {_seconds(one.step.network_seconds)}"
        rows.append(
            f"| {cluster.ranks:,} | {one.split.micro_batches} | {' | '.join(steps)} | {alone} | {one.bytes / _GB:.2f} |"
        )
    this = settings.method.schedule
    head = f"| ranks | micro-batches | {' | '.join(found)} | {this} computes | {this} on the network | GB a rank |"
    return "\n".join(["", head, "|---" * (5 + len(found)) + "|", *rows])


def _numbers(given: str) -> list[int]:
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(
            f"{given!r}: whole numbers of ranks from 1 on, such as 8 or 8,64,512", param_hint="--gpus"
        )
    return numbers


def _head(settings: Config, workload: Workload, cluster: Cluster, made: Forecast, dtype: str) -> str:
    where = (
        f"data.max_length; the data are not here: {workload.missing}" if workload.missing else "the longest of the data"
    )
    ranks = f"{cluster.ranks:,} rank{'s' if cluster.ranks > 1 else ''}"
    number, samples = made.split
    batches = f"{number} micro-batch{'es' if number > 1 else ''} of up to {samples} sample{'s' if samples > 1 else ''}"
    method = settings.method
    return (
        f"{method.name} ({method.schedule}) on {settings.model.name_or_path} in {dtype}, {ranks} at ZeRO {made.stage}: "
        f"{batches} a step, up to {len(workload.samples[0])} tokens each ({where})"
    )


def _memory(made: Forecast, cluster: Cluster) -> str:
    rows = [f"| {name} | {count / _GB:.2f} |" for name, count in made.holds.items()]
    fits = "fits" if made.fits(cluster) else "does not fit"
    total = f"| all | {made.bytes / _GB:.2f} of {cluster.memory:g}: {fits} |"
    return "\n".join(["", "| a rank holds | GB |", "|---|---|", *rows, total])


def _time(made: Forecast, cluster: Cluster) -> str:
    step = made.step
    which = f", the mean of the {made.replays} on a minibatch," if made.replays > 1 else ""
    told = f"A step{which} computes {_seconds(step.compute_seconds)} at {cluster.tflops:g} TFLOP/s"
    if step.network_seconds:
        told += f" and is {_seconds(step.network_seconds)} on the network"
    if step.gathered:
        told += f", where it gathers {step.gathered / _GB:.1f} GB"
    return f"\n{told}: {_seconds(step.seconds)} where one hides behind the other. Evaluation comes on top."


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
