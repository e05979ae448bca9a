"""`anit predict`: new texts answered by a run, JSON lines in, JSON lines out, a few batches at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import click

from anit_ds.commands.arguments import dtype, ignored_local_rank, threshold
from anit_ds.errors import InputError
from anit_ds.files import json_line, json_lines

Row = tuple[str, dict[str, Any]]
"""Where an object stands, and it."""


@click.command(short_help="Answer new texts with a run.")
@click.argument("run", type=click.Path())
@click.option("--input", "source", required=True, metavar="FILE", help="JSON lines with a `text` (and, in a mixture, a "
              "`dataset`); - for standard input.")  # fmt: skip
@click.option("--output", default="-", metavar="FILE", help="Where the answers go as they are made; by default "
              "standard output.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), default=None, help="Longest answer in tokens; by default "
              "what training's longest needs and a margin.")  # fmt: skip
@click.option("--probabilities/--no-probabilities", default=None, help="Classification: score every label too; by "
              "default where there are 16 or fewer.")  # fmt: skip
@click.option("--constrained", is_flag=True, help="Extraction and multilabel: answers that are valid by "
              "construction (known labels, spans copied from the text), with a score for each item.")  # fmt: skip
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, help="Leave out items whose score is below "
              "this; implies --constrained.")  # fmt: skip
@threshold
@dtype
@ignored_local_rank
def predict(
    run: str,
    source: str,
    output: str,
    max_new_tokens: int | None,
    probabilities: bool | None,
    constrained: bool,
    min_score: float,
    thresholds: tuple[str, ...],
    dtype: str | None,
) -> None:
    """Answers of a RUN for new texts: each input line again, with `answer` and `items`, with `malformed` where pieces
    of the answer could not be read, and `cut` where it was cut off at its limit. Classification: `probabilities` of the
    labels, at the temperature that dev found, and the `label` chosen by them. Multilabel: the `labels` of the answer.
    With --constrained `scores`: of each item the geometric mean of its tokens' probabilities."""
    from anit_ds.evaluation.finished import FinishedRun
    from anit_ds.ranks import distributed

    if thresholds:
        if probabilities is False:
            raise InputError("--threshold: needs the labels' probabilities; leave out --no-probabilities")
        probabilities = True
    with FinishedRun.watched(run, dtype=dtype, max_new_tokens=max_new_tokens, thresholds=thresholds) as asked:
        main = distributed.rank() == 0
        if main and source != "-":
            with _opened(source) as file:  # what is wrong in line 90,000 is said before the first is answered
                for where, row in _rows(file, source):
                    asked.check(row, where)
        count = cut = unread = scored = without = 0
        with _opened(source) as file:
            answers = asked.answer(
                _rows(file, source), probabilities=probabilities, constrained=constrained or min_score > 0,
                least=min_score,
            )  # fmt: skip
            with _written(output if main else os.devnull, source) as out:  # emptied, now that nothing is refused
                for answered in answers:
                    out.write(b"".join(map(json_line, answered)))
                    out.flush()
                    count += len(answered)
                    cut += sum("cut" in row for row in answered)
                    unread += sum("malformed" in row for row in answered)
                    scored += sum("probabilities" in row for row in answered)
                    without += sum("probabilities" in row and row["label"] is None for row in answered)
        if main:
            abstained = f", {without} without a label" if without else ""
            click.echo(f"{count} answers: {cut} cut at the limit, {unread} not parsed whole{abstained}", err=True)
            if scored and (note := asked.uncalibrated()):
                click.echo(note, err=True)


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--input: cannot read {source} ({error.strerror})") from error
    with file:
        yield file


def _rows(file: BinaryIO, source: str) -> Iterator[Row]:
    """The objects of the input, read as they are asked for. Raises InputError, with the line, for what is none."""

    def refuse(line: int, problem: str) -> NoReturn:
        raise InputError(f"{source}:{line}: {problem}")

    for number, row in json_lines(file, refuse):
        if not isinstance(row, dict):
            refuse(number, 'expected an object with a "text"')
        yield f"{source}:{number}", row


@contextmanager
def _written(output: str, source: str) -> Iterator[BinaryIO]:
    if output == "-":
        yield sys.stdout.buffer
        return
    try:
        if source != "-" and Path(output).exists() and os.path.samefile(source, output):
            raise InputError(f"--output: {output} is the input; choose another file")
        file = Path(output).open("wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--output: cannot write {output} ({error.strerror})") from error
    with file:
        yield file
