"""`anit try`: texts typed in a terminal, and what a run answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import click

from anit_ds.commands.arguments import dtype, threshold
from anit_ds.commands.describe import describe_answer
from anit_ds.errors import InputError
from anit_ds.files import text_lines


@click.command("try", short_help="Type texts, see a run's answers.")
@click.argument("run", type=click.Path())
@click.option("--dataset", default=None, metavar="NAME", help="In a mixture, the data set that the texts are of.")
@click.option("--constrained", is_flag=True, help="Extraction and multilabel: answers that are valid by construction, "
              "with scores.")  # fmt: skip
@threshold
@dtype
def try_texts(run: str, dataset: str | None, constrained: bool, thresholds: tuple[str, ...], dtype: str | None) -> None:
    """Answers of a RUN to texts as you type them, a text a line; Ctrl-D ends. Classification: with each label's
    probability. Standard input may be a pipe: `anit try RUN < texts.txt`."""
    from anit_ds.evaluation.finished import FinishedRun

    asked = FinishedRun(run, dtype=dtype, thresholds=thresholds)
    constrained = asked.constrains(constrained)
    of = {"dataset": dataset} if dataset else {}
    words = asked.data_set_of(of, "--dataset").instructions.labels
    asked.model  # noqa: B018 (what is wrong with it is said before the first text)
    typed = sys.stdin.isatty()
    rows = ((f"line {at}", {"text": text, **of}) for at, text in _lines(typed) if text.strip())
    probable = False
    for some in ([row] for row in rows) if typed else [rows]:
        try:
            for answered in asked.answer(
                some, probabilities=True if asked.thresholds.labels else None, constrained=constrained
            ):
                for row in answered:
                    click.echo(("" if typed else f"> {row['text']}\n") + describe_answer(row, words))
                    probable |= "probabilities" in row
        except InputError as error:  # one text; the next one may be better
            if not typed:
                raise
            click.echo(f"{error}", err=True)
    if probable and (note := asked.uncalibrated()):
        click.echo(note, err=True)


def _lines(typed: bool) -> Iterator[tuple[int, str]]:
    """The lines of standard input with their numbers; in a terminal each after a prompt, with a history."""

    def refuse(line: int, problem: str) -> NoReturn:
        raise InputError(f"line {line}: {problem}")

    if not typed:
        yield from text_lines(sys.stdin.buffer, refuse)
        return
    with suppress(ImportError):  # there is none on Windows
        import readline  # noqa: F401 (that it is loaded gives `input` its history)
    number = 0
    while True:
        number += 1
        try:
            yield number, input("> ")
        except EOFError:
            click.echo()
            return
