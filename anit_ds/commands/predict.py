"""`anit predict`: new texts answered by a finished run, JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from anit_ds.commands.arguments import dtype
from anit_ds.errors import InputError


@click.command(short_help="Answer new texts with a finished run.")
@click.argument("run", type=click.Path())
@click.option("--input", "source", required=True, metavar="FILE", help="JSON lines with a `text` (and, in a mixture, a "
              "`dataset`); - for standard input.")  # fmt: skip
@click.option("--output", default="-", metavar="FILE", help="Where the answers go; standard output by default.")
@dtype
def predict(run: str, source: str, output: str, dtype: str | None) -> None:
    """Answers of a finished RUN for new texts: each input line again, with `answer` and `items`."""
    from anit_ds.evaluation.finished import FinishedRun
    from anit_ds.ranks import distributed

    finished = FinishedRun(run, dtype=dtype)
    answered = finished.answer(_read_texts(source))
    if distributed.rank() == 0:
        _write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered), output)


def _read_texts(source: str) -> dict[str, dict[str, Any]]:
    """Where each object stands -> the object."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--input: cannot read {source} ({error.strerror})") from error
    rows = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f'{where}: expected an object with a "text"')
        rows[where] = row
    return rows


def _write(text: str, output: str) -> None:
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: cannot write {output} ({error.strerror})") from error
