"""`anit eval`: a run scored on dev or test."""

from __future__ import annotations

import os
from pathlib import Path

import click

from anit_ds.commands.arguments import dtype, ignored_local_rank, threshold


@click.command("eval", short_help="Score a run on dev or test.")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True)
@click.option("--noise", default=None, metavar="NAME", help="Bend every instruction: truncation, shuffle, insertion, "
              "replacement, padding, opposite; or all of them in turn.")  # fmt: skip
@click.option("--base", is_flag=True, help="Score the untouched model, without the adapter.")
@click.option("--constrained", is_flag=True, help="Extraction and multilabel: score answers that are valid by "
              "construction too (known labels, spans copied from the text).")  # fmt: skip
@click.option("--output", type=click.Path(), default=None, metavar="DIR", help="Where the scores and answers are "
              "written; by default eval/ of the run.")  # fmt: skip
@threshold
@dtype
@ignored_local_rank
def evaluate(
    run: str,
    split: str,
    noise: str | None,
    base: bool,
    constrained: bool,
    output: str | None,
    thresholds: tuple[str, ...],
    dtype: str | None,
) -> None:
    """Greedy answers of a RUN on dev or test, scored: eval/NAME.json and eval/predictions-NAME.jsonl."""
    from anit_ds.commands.describe import describe_evaluation
    from anit_ds.data.noise import NOISES
    from anit_ds.errors import InputError
    from anit_ds.evaluation.finished import FinishedRun
    from anit_ds.ranks import distributed

    if noise not in (None, "none", "all", *NOISES):
        raise InputError(f"--noise: no noise is called {noise!r}; there are {', '.join(NOISES)}, and all of them: all")
    noises = ["none", *NOISES] if noise == "all" else [noise or "none"]
    folder = Path(output) if output else None
    if folder is not None:
        _make(folder)
    with FinishedRun.watched(run, base=base, dtype=dtype, thresholds=thresholds) as asked:
        for way in (False, True) if asked.constrains(constrained) else (False,):
            for name, evaluation, remarks in asked.evaluate(split, noises, constrained=way, output=folder):
                if distributed.rank() == 0:
                    said = [describe_evaluation(name, evaluation.report)] if evaluation else [f"{name}:"]
                    click.echo("\n".join([*said, *remarks]))


def _make(folder: Path) -> None:
    """Raises InputError for an output folder that cannot be written, before any work is done for it."""
    from anit_ds.errors import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: cannot make {folder} ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output: cannot write into {folder}")
