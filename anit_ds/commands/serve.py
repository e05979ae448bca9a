"""`anit serve`: a run behind HTTP."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

import click

from anit_ds.commands.arguments import dtype, threshold

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(short_help="Answer over HTTP, in OpenAI's form too.")
@click.argument("run", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; by default only this "
              "machine can ask.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--constrained", is_flag=True, help="Extraction and multilabel: answers that are valid by construction, "
              "with scores.")  # fmt: skip
@threshold
@dtype
def serve(run: str, host: str, port: int, constrained: bool, thresholds: tuple[str, ...], dtype: str | None) -> None:
    """Serve a RUN: /v1/chat/completions takes a text as a chat message, /predict gives probabilities and scores, and /
    is a page to try a text.

    ANIT_API_KEY, where it is set, must come with each request as a bearer token, but for the page, which has the
    labels' words in it, and /health.

    \b
        anit serve runs/spam &
        curl localhost:8000/predict -d '{"text": "win a prize now"}'
    """
    from anit_ds.errors import InputError
    from anit_ds.evaluation.finished import FinishedRun

    try:
        import uvicorn

        from anit_ds.serving import build_app
    except ImportError as error:
        raise InputError(f"anit serve needs {error.name}: pip install 'anit-ds[serve]'") from error

    key = os.environ.get("ANIT_API_KEY") or None
    if host not in _LOOPBACK and key is None:
        click.echo(f"note: anyone who reaches {host}:{port} can ask; set ANIT_API_KEY to ask for a key", err=True)
    _refuse_taken(host, port)
    asked = FinishedRun(run, dtype=dtype, thresholds=thresholds)
    constrained = asked.constrains(constrained)
    asked.model  # noqa: B018 (what is wrong with it is said before the port is open)
    app = build_app(asked, api_key=key, constrained=constrained)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has answered what had come
        uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="info")).run()


def _refuse_taken(host: str, port: int) -> None:
    """Raises InputError where nothing can listen there, before a model is loaded in vain."""
    from anit_ds.errors import InputError

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except socket.gaierror as error:
        raise InputError(f"--host: {host} is no address ({error.strerror})") from error
    except OSError as error:
        cure = "; give another --port, or 0 for any free one" if error.errno == errno.EADDRINUSE else ""
        why = os.strerror(error.errno or 0)
        raise InputError(f"--host, --port: cannot listen on {host}:{port} ({why}){cure}") from error
