"""`anit predict`: new texts answered by a run, a table in, JSON lines out, a few batches at a time."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import click

from anit_ds.commands.arguments import dtype, ignored_local_rank, threshold
from anit_ds.data.corpora.reading import Broken, Faults, open_binary
from anit_ds.data.corpora.table import ENDINGS, records
from anit_ds.errors import InputError
from anit_ds.files import finite_or_null, json_line, json_lines

Row = tuple[str, dict[str, Any]]
"""Where an object stands, and it."""


@click.command(short_help="Answer new texts with a run.")
@click.argument("run", type=click.Path())
@click.option("--input", "source", required=True, metavar="FILE", help="CSV, TSV, JSON, JSON lines, Parquet or Arrow, "
              "with the columns that data.columns names for the text, or a `text` (in a mixture a `dataset` too); - is "
              "JSON lines from standard input.")  # fmt: skip
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
    of the answer could not be read, and `cut` where it was cut off at its limit, and
    `text_cut` where the text lost its end to data.max_length. Classification: `probabilities` of the
    labels, at the temperature that dev found, and the `label` chosen by them. Multilabel: the `labels` of the answer.
    With --constrained `scores`: of each item the geometric mean of its tokens' probabilities, and the probability of
    `none`."""
    from anit_ds.evaluation.finished import FinishedRun
    from anit_ds.ranks import distributed

    _check_output(output, source)
    with FinishedRun.watched(run, dtype=dtype, max_new_tokens=max_new_tokens, thresholds=thresholds) as asked:
        main = distributed.rank() == 0
        if asked.thresholds.labels:
            if probabilities is False:
                raise InputError("--threshold: needs the labels' probabilities; leave out --no-probabilities")
            probabilities = True
        if main and not _is_stream(source):
            for where, row in _rows(source):  # what is wrong in line 90,000 is said before the first is answered
                asked.check(row, where)
        count = cut = unread = scored = without = shortened = 0
        answers = asked.answer(
            _rows(source), probabilities=probabilities, least=min_score,
            constrained=constrained or min_score > 0,
        )  # fmt: skip
        with _written(output if main else os.devnull) as out:  # emptied, now that nothing is refused
            for answered in answers:
                # A Parquet file may hold dates, and numbers that JSON has no word for.
                out.write(b"".join(json_line(finite_or_null(row), default=str) for row in answered))
                out.flush()
                count += len(answered)
                cut += sum("cut" in row for row in answered)
                shortened += sum("text_cut" in row for row in answered)
                unread += sum("malformed" in row for row in answered)
                scored += sum("probabilities" in row for row in answered)
                without += sum("probabilities" in row and row["label"] is None for row in answered)
        if main:
            abstained = f", {without} without a label" if without else ""
            click.echo(f"{count} answers: {cut} cut at the limit, {unread} not parsed whole{abstained}", err=True)
            if shortened:
                click.echo(f"{shortened} texts lost their end, which does not fit into data.max_length", err=True)
            if scored and (note := asked.uncalibrated()):
                click.echo(note, err=True)


def _rows(source: str) -> Iterator[Row]:
    """The objects of the input, read as they are asked for. Raises InputError, with the line, for what is none."""
    for number, record in _records(source):
        if isinstance(record, Broken) or not isinstance(record, dict):
            problem = record if isinstance(record, Broken) else 'expected an object with a "text"'
            raise InputError(f"{source}:{number}: {problem}")
        yield f"{source}:{number}", record


def _is_stream(source: str) -> bool:
    """Whether this can be read once only, as a pipe or a terminal can; a table is looked at before it is read."""
    try:
        return source == "-" or not stat.S_ISREG(os.stat(source).st_mode)
    except OSError:  # whoever opens it says why
        return False


def _records(source: str) -> Iterator[tuple[int, object]]:
    """(line or row, the record) of a file, by the ending of its name: a table, else JSON lines."""

    def refuse(line: int, problem: str) -> NoReturn:
        raise InputError(f"{source}:{line}: {problem}")

    path = Path(source)
    if source == "-":
        yield from json_lines(sys.stdin.buffer, refuse)
    elif path.suffix.lower() in ENDINGS and not _is_stream(source):
        yield from records(path, Faults(cure=""))
    else:
        with open_binary(path) as file:
            yield from json_lines(file, refuse)


def _check_output(output: str, source: str) -> None:
    """Raises InputError for a file that cannot be written, before a model is loaded; nothing in it changes."""
    if output == "-":
        return
    path = Path(output)
    try:
        if source != "-" and path.exists() and os.path.samefile(source, output):
            raise InputError(f"--output: {output} is the input; choose another file")
        if not path.exists():
            path.parent.stat()
        elif path.is_file():
            path.open("ab").close()
    except OSError as error:
        raise InputError(f"--output: cannot write {output} ({error.strerror})") from error


@contextmanager
def _written(output: str) -> Iterator[BinaryIO]:
    if output == "-":
        yield sys.stdout.buffer
        return
    try:
        file = Path(output).open("wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--output: cannot write {output} ({error.strerror})") from error
    with file:
        yield file
