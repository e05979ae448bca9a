"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def config_and_overrides(*, required: bool = True) -> Callable[[Command], Command]:
    """CONFIG, a YAML file or a run's folder, and section.key=value after it."""

    def add(command: Command) -> Command:
        command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")(command)
        return click.argument("config", type=click.Path(), required=required)(command)

    return add


# The deepspeed launcher adds it; the ranks are told by the environment.
ignored_local_rank = click.option("--local_rank", type=int, hidden=True, expose_value=False)

fresh = click.option("--fresh", is_flag=True, help="In place of the run that is in the folder.")

dtype = click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Load the weights in another dtype than the run's.",
)  # fmt: skip

threshold = click.option(
    "--threshold", "thresholds", multiple=True, metavar="LABEL=p", help="Classification: choose LABEL where its "
    "probability is p or more, and only there; may be given for several labels. Where none is left, the label is null. "
    "Extraction and multilabel: None=p, which implies --constrained, is the same for whether a text has any item; "
    "None=dev takes what `anit eval --split dev --constrained` has fitted.",
)  # fmt: skip
