"""The command `anit`: one command a function; each parses, calls, and prints.

Exit codes: 0 done, 1 a run failed, 2 what the user gave is wrong. Heavy modules are imported inside the commands that
need them, so that `--help` and `anit data` start without torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from anit_ds import __version__
from anit_ds.errors import InputError, ServiceError

# Two OpenMP threads that spin while they wait burn four times the CPU on a busy machine. Said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="anit")
def cli() -> None:
    """Adversarial Noisy Instruction Tuning of causal language models on DeepSpeed.

    \b
    Start with:   anit demo
    A run:        anit data CONFIG;  anit train CONFIG;  anit eval RUN;  anit predict RUN --input FILE
    """


def _config_arguments(command: Any) -> Any:
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")(command)
    return click.argument("config", type=click.Path())(command)


@cli.command(short_help="Build the noisy set, measure it, and show it.")
@_config_arguments
@click.option("--dry-run", is_flag=True, help="Only say what measuring the distortion would ask of a model.")
@click.option("--fresh", is_flag=True, help="Empty the run's folder first.")
def data(config: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool) -> None:
    """Build the noisy set of CONFIG: OUT/data with train, dev, test as JSON lines, and manifest.json.

    Overrides are written section.key=value, such as noise.omega=0.3.
    """
    from anit_ds.commands.describe import describe_data
    from anit_ds.configfile import load_config
    from anit_ds.data.rundata import RunData
    from anit_ds.runfolder import RunFolder

    settings = load_config(config, overrides)
    if dry_run:
        click.echo("\n".join(RunData.estimate(settings)))
        return
    run = RunFolder(settings.out)
    run.prepare(settings, fresh=fresh)
    click.echo(describe_data(RunData.load(settings, run.data), run.data))


@cli.command("train", short_help="Train, or go on from the last checkpoint.")
@_config_arguments
@click.option("--fresh", is_flag=True, help="Empty the run's folder first.")
@click.option("--local_rank", type=int, hidden=True)  # the deepspeed launcher adds it
def train_(config: str, overrides: tuple[str, ...], fresh: bool, local_rank: int | None) -> None:
    """Train CONFIG, alone or under a launcher (the same command); go on from the last good checkpoint if there is
    one."""
    from anit_ds.ranks.signals import Signals

    signals = Signals()  # before the imports, which take seconds: a scheduler's signal must find somebody who listens
    from anit_ds.configfile import load_config

    settings = load_config(config, overrides)
    from anit_ds.commands.describe import describe_summary
    from anit_ds.ranks import distributed
    from anit_ds.training import train

    summary = train(settings, fresh=fresh, signals=signals)
    if summary is not None and distributed.rank() == 0:
        click.echo(describe_summary(summary, Path(settings.out)))


@cli.command("eval", short_help="Score a finished run on dev or test.")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True)
@click.option("--noise", default=None, metavar="NAME", help="Bend every instruction: truncation, shuffle, insertion, "
              "replacement, padding, opposite; or all of them in turn.")  # fmt: skip
@click.option("--base", is_flag=True, help="Score the untouched model, without the adapter.")
@click.option("--dtype", default=None, help="Load the weights in another dtype than the run's.")
@click.option("--local_rank", type=int, hidden=True)
def eval_(run: str, split: str, noise: str | None, base: bool, dtype: str | None, local_rank: int | None) -> None:
    """Greedy answers of a finished RUN on dev or test, scored: eval/NAME.json and eval/predictions-NAME.jsonl."""
    from anit_ds.commands.describe import describe_evaluation
    from anit_ds.commands.evaluate import evaluate_run
    from anit_ds.ranks import distributed

    made = evaluate_run(Path(run), split=split, noise=noise, base=base, dtype=dtype)
    if distributed.rank() == 0:
        for name, evaluation in made.items():
            click.echo(describe_evaluation(name, evaluation.report, Path(run)))


@cli.command(short_help="Answer new texts with a finished run.")
@click.argument("run", type=click.Path())
@click.option("--input", "source", required=True, metavar="FILE", help="JSON lines with a `text` (and, in a mixture, a "
              "`dataset`); - for standard input.")  # fmt: skip
@click.option("--output", default="-", metavar="FILE", help="Where the answers go; standard output by default.")
@click.option("--dtype", default=None, help="Load the weights in another dtype than the run's.")
def predict(run: str, source: str, output: str, dtype: str | None) -> None:
    """Answers of a finished RUN for new texts: each input line again, with `answer` and `items`."""
    from anit_ds.commands.evaluate import predict_file

    predict_file(Path(run), source, output, dtype=dtype)


@cli.command(short_help="The whole way in minutes; nothing to prepare.")
@click.option("--out", default="runs/demo", show_default=True, help="The run's folder; emptied first.")
@click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16 or float32.")
def demo(out: str, dtype: str) -> None:
    """The whole way on a model and data that come as packages: noisy set, F1 before, training, F1 after, the
    adapter."""
    from anit_ds.commands.demo import run_demo

    run_demo(Path(out), dtype)


@cli.command(short_help="Train a grid of runs; tables, figures and a report.")
@_config_arguments
@click.option("--jobs", type=click.IntRange(min=1), help="Cells trained at once; by default the configuration's.")
@click.option("--dry-run", is_flag=True, help="Only list the cells, which are done, and how long the rest will take.")
@click.option("--report-only", is_flag=True, help="Train nothing: make tables, figures and report from what is there.")
def compare(config: str, overrides: tuple[str, ...], jobs: int | None, dry_run: bool, report_only: bool) -> None:
    """Train every cell of a grid (methods, noises, data sets, seeds ...), and write results.json, tables, figures and
    report.html into CONFIG's `out`. Finished cells are not run again; a cell that fails is reported, and the rest goes
    on."""
    from anit_ds import experiments

    settings = experiments.load_compare_config(config, overrides)
    if dry_run:
        click.echo(experiments.describe_plan(settings))
        return
    sys.exit(1 if experiments.compare(settings, jobs=jobs, report_only=report_only) else 0)


@cli.command("config", short_help="Print every field with its meaning and default.")
def config_() -> None:
    """Print every field of a configuration with its meaning and default, as YAML to start from."""
    from anit_ds.configfile import annotated_yaml

    click.echo(annotated_yaml())


@cli.command(short_help="Write the adapter, or base and adapter merged.")
@click.argument("run", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--merge", is_flag=True, help="Base and adapter in one checkpoint that transformers loads alone.")
def export(run: str, out: str, merge: bool) -> None:
    """Write the adapter of RUN to OUT in PEFT's format, or with --merge the whole model."""
    from anit_ds.commands.export import export_run

    click.echo(export_run(Path(run), Path(out), merge=merge))


@cli.command(short_help="What is wrong with this machine, and the cure.")
@click.option("--out", default="runs", show_default=True, help="Where runs would be written.")
def doctor(out: str) -> None:
    """What is installed, which accelerator, does the kernel compile, can ranks talk, is there disk."""
    from anit_ds.commands import doctor as examination

    sys.exit(examination.run(out))


def main() -> None:
    """Entry point: InputError becomes its sentence and exit code 2."""
    code = 0
    try:
        cli(standalone_mode=False)
    except InputError as error:
        click.echo(f"anit: {error}", err=True)
        code = 2
    except ServiceError as error:
        click.echo(f"anit: {error}", err=True)
        code = 1
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("anit: interrupted", err=True)
        code = 130
    if distributed := sys.modules.get("anit_ds.ranks.distributed"):
        distributed.end(code)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
