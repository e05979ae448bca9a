"""`anit eval`: a finished run scored on dev or test."""

from __future__ import annotations

from pathlib import Path

import click

from anit_ds.commands.arguments import dtype, ignored_local_rank


@click.command("eval", short_help="Score a finished run on dev or test.")
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True)
@click.option("--noise", default=None, metavar="NAME", help="Bend every instruction: truncation, shuffle, insertion, "
              "replacement, padding, opposite; or all of them in turn.")  # fmt: skip
@click.option("--base", is_flag=True, help="Score the untouched model, without the adapter.")
@dtype
@ignored_local_rank
def evaluate(run: str, split: str, noise: str | None, base: bool, dtype: str | None) -> None:
    """Greedy answers of a finished RUN on dev or test, scored: eval/NAME.json and eval/predictions-NAME.jsonl."""
    from anit_ds.commands.describe import describe_evaluation
    from anit_ds.data.noise import NOISES
    from anit_ds.errors import InputError
    from anit_ds.evaluation.finished import FinishedRun
    from anit_ds.ranks import distributed

    if noise not in (None, "none", "all", *NOISES):
        raise InputError(f"--noise: no noise is called {noise!r}; there are {', '.join(NOISES)}, and all of them: all")
    noises = ["none", *NOISES] if noise == "all" else [noise or "none"]
    made = FinishedRun(run, base=base, dtype=dtype).evaluate(split, noises)
    if distributed.rank() == 0:
        for name, evaluation in made.items():
            click.echo(describe_evaluation(name, evaluation.report, Path(run)))
