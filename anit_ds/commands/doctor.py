"""`anit doctor`: what was found on this machine, one line for each thing, with the cure."""

from __future__ import annotations

import sys

import click

_COLOURS = {"ok": None, "warning": "yellow", "error": "red"}


@click.command(short_help="What is wrong with this machine, and the cure.")
@click.option("--out", default="runs", show_default=True, help="Where runs would be written.")
def doctor(out: str) -> None:
    """What is installed, which accelerator, does the kernel compile, can ranks talk, is there disk."""
    from anit_ds.doctor_checks import examine

    errors = 0
    for finding in examine(out):
        line = f"{finding.level:<8} {finding.what:<12} {finding.text}"
        cure = f"\n{'':22}cure: {finding.cure}" if finding.cure else ""
        click.secho(line + cure, fg=_COLOURS[finding.level])
        errors += finding.level == "error"
    sys.exit(1 if errors else 0)
