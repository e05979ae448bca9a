"""How a command of `anit` ends: the exit code, and one sentence for what the user can put right.

Exit codes: 0 done, 1 a run failed, 2 what the user gave is wrong.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

import click

from anit_ds.errors import InputError, RunFailed, ServiceError, first_line

# Two OpenMP threads that spin while they wait burn four times the CPU on a busy machine. Said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# bitsandbytes warns at each import on some CPUs that it has no kernel from the hub, which nobody has asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]


def _no_room(error: Exception) -> str | None:
    """What to say where a disk is full, which safetensors tells in words alone; None for any other error."""
    if not any(full in str(error) for full in _FULL):
        return None
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{place}{first_line(error)}; make room and start it again: a training goes on from its last checkpoint"


def run(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Run a command on `arguments` (the process's own by default); anything but success ends the process.

    InputError becomes its sentence and exit code 2.
    """
    code = 0
    try:
        command.main(arguments, prog_name="anit", standalone_mode=False)
    except InputError as error:
        click.echo(f"anit: {error}", err=True)
        code = 2
    except (ServiceError, RunFailed) as error:
        click.echo(f"anit: {error}", err=True)
        code = 1
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("anit: interrupted", err=True)
        code = 130
    except Exception as error:
        if not (full := _no_room(error)):
            raise
        click.echo(f"anit: {full}", err=True)
        code = 1
    if distributed := sys.modules.get("anit_ds.ranks.distributed"):
        distributed.end(code)
    if code:
        sys.exit(code)
