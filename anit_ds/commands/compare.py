"""`anit compare`: a grid of runs, with a line as each ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from anit_ds.commands.arguments import config_and_overrides
from anit_ds.commands.entry import run
from anit_ds.commands.train import train

if TYPE_CHECKING:
    from anit_ds.experiments import Cell, Planned


@click.command(short_help="Train a grid of runs; tables, figures and a report.")
@config_and_overrides(required=False)
@click.option("--init", is_flag=True, help="Print a comparison to start from, every field explained.")
@click.option("--jobs", type=click.IntRange(min=1), help="Cells trained at once; by default the configuration's.")
@click.option("--dry-run", is_flag=True, help="Only list the cells, which are done, and how long the rest will take.")
@click.option("--report-only", is_flag=True, help="Train nothing: make tables, figures and report from what is there.")
def compare(
    config: str | None, overrides: tuple[str, ...], init: bool, jobs: int | None, dry_run: bool, report_only: bool
) -> None:
    """Train every cell of a grid (methods, noises, data sets, seeds ...), and write results.json, tables, figures and
    report.html into CONFIG's `out`. Finished cells are not run again; a cell that fails is reported, and the rest goes
    on. It begins with

    \b
        anit compare --init > comparison.yaml
    """
    from anit_ds import experiments

    if init == (config is not None):
        raise click.UsageError("CONFIG is the YAML of a comparison; --init, without CONFIG, prints one to start from")
    if config is None:
        click.echo(experiments.example_yaml(), nl=False)
        return
    settings = experiments.load_compare_config(config, overrides)
    if dry_run:
        click.echo(_describe(experiments.plan(settings)))
        return
    outcome = experiments.compare(settings, train=train_cell, listener=Progress(), jobs=jobs, report_only=report_only)
    click.echo(f"{outcome.done} of {outcome.cells} cells done; report: {outcome.report}")
    sys.exit(1 if outcome.failed else 0)


def train_cell(config: str) -> None:
    """`anit train CONFIG` in this process."""
    run(train, [config])


def _describe(plan: Sequence[Planned]) -> str:
    """A line for each cell, and one for all."""
    from anit_ds.experiments.estimate import clock

    lines = []
    for cell in plan:
        estimate = "done" if cell.done else "time unknown (its data are not here)"
        if cell.seconds is not None:
            estimate = f"about {clock(cell.seconds)}"
        passes = f"{cell.passes} pass{'es' if cell.passes > 1 else ''}"
        lines.append(f"{cell.kind:5} {cell.name:60} {passes} a step, {estimate}")
    done = sum(cell.done for cell in plan)
    known = [cell.seconds for cell in plan if cell.seconds is not None]
    unknown = len(plan) - done - len(known)
    left = []
    if known:
        basis = "from the finished cells" if done else "a rough count of operations, until a cell is finished"
        left.append(f"about {clock(sum(known))} to go ({basis})")
    if unknown:
        left.append(f"{unknown} of unknown time")
    lines.append(f"{len(plan)} cells, {done} done; {', '.join(left) or 'nothing to go'}")
    return "\n".join(lines)


class Progress:
    """A line for each finished cell, with what is left."""

    def __init__(self) -> None:
        self._left: dict[str, Cell] = {}
        self._done: list[dict[str, Any]] = []
        self._total = 0

    def expect(self, what: str, grid: Sequence[Cell], done: Sequence[dict[str, Any]]) -> None:
        known = {(result["arm"], result["config_hash"]) for result in done}
        self._left = {cell.name: cell for cell in grid if (cell.arm, cell.hash) not in known}
        self._done, self._total = list(done), len(grid)
        click.echo(f"{len(grid)} {what}, {len(done)} of them done")

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        from anit_ds.experiments.estimate import clock

        self._left.pop(cell.name, None)
        place = f"[{self._total - len(self._left)}/{self._total}] {cell.name}"
        if result["status"] == "failed":
            click.echo(f"{place}: FAILED: {result['error']} (see {cell.config.out}/output.txt)", err=True)
            return
        self._done.append(result)
        scores = [f"{name} {result[key]:.4f}" for name, key in (("test", "micro_f1"), ("dev", "dev_micro_f1"))
                  if result[key] is not None]  # fmt: skip
        click.echo(f"{place}: micro-F1 {', '.join(scores)}, {clock(result['seconds'])}{self._time_left()}")

    def _time_left(self) -> str:
        from anit_ds.experiments.estimate import clock, device_here, seconds

        left = [seconds(cell, self._done, device_here()) for cell in self._left.values()]
        return f", about {clock(sum(s for s in left if s))} left" if left else ""
