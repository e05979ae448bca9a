"""The HTTP application: what each address takes and gives.

GET  /                       a page to try a text
GET  /health                 {"status": "ok"}
GET  /v1/models              the run's data sets, by the names that `model` takes
POST /v1/chat/completions    OpenAI's form: the last message is the text, `model` its data set, the reply the answer
POST /predict                {"text": ...} or {"texts": [...]}: rows as `anit predict` writes them
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from anit_ds.errors import InputError, shown
from anit_ds.evaluation.finished import FinishedRun
from anit_ds.files import finite_or_null
from anit_ds.serving.batcher import Batcher, Row

_LARGEST = 1 << 20  # bytes of a request
_MOST_TEXTS = 1000


class _Refused(Exception):
    """A request that cannot be answered: its status, and why in a sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def build_app(run: FinishedRun, *, api_key: str | None = None, constrained: bool = False) -> Starlette:
    """The application for a run whose model is loaded. With `api_key` a request must carry it as a bearer token."""
    service = _Service(run, api_key=api_key, constrained=constrained)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/predict", service.predict, methods=["POST"]),
        ],
        exception_handlers={_Refused: _refuse, InputError: _refuse, Exception: _refuse},
        lifespan=service.answering,
    )


class _Service:
    """What stands behind the addresses: one run, and one batcher that all requests share."""

    def __init__(self, run: FinishedRun, *, api_key: str | None, constrained: bool) -> None:
        self.run, self.api_key = run, api_key
        self.names, self.since = [data_set.name for data_set in run.data.sets], int(time.time())
        self.batcher = Batcher(lambda rows: _answer(run, rows, constrained), batch_size=run.config.eval.batch_size)

    @asynccontextmanager
    async def answering(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def page(self, request: Request) -> Response:
        html = files("anit_ds.serving").joinpath("page.html").read_text(encoding="utf-8")
        words = {data_set.name: data_set.instructions.labels for data_set in self.run.data.sets}
        return HTMLResponse(html.replace("{{ words }}", json.dumps(words).replace("<", "\\u003c")))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        self._let_in(request)
        about = {"object": "model", "created": self.since, "owned_by": "anit-ds"}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in self.names]})

    async def predict(self, request: Request) -> Response:
        body = await self._body_of(request)
        texts = body.get("texts", [body["text"]] if "text" in body else None)
        if texts is None:
            raise _Refused(400, 'the request: expected an object with a "text" or "texts"')
        if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_TEXTS:
            raise _Refused(400, f"`texts` is a list of 1 to {_MOST_TEXTS} texts")
        of = {"dataset": _name(body, "dataset")} if "dataset" in body else {}
        rows = [self._checked({"text": text, **of}) for text in texts]
        answered = await asyncio.gather(*map(self.batcher.ask, rows))
        return _json(answered[0] if "texts" not in body else {"rows": answered})

    async def chat(self, request: Request) -> Response:
        body = await self._body_of(request)
        if body.get("n") not in (None, 1):
            raise _Refused(400, "`n`: answers are greedy, so there is one")
        if not isinstance(body.get("stream"), bool | None):
            raise _Refused(400, "`stream` is true or false")
        model = _name(body, "model")
        if model is not None and model not in self.names:
            raise _Refused(404, f"`model`: {shown(model)} is not served here; there is {', '.join(self.names)}")
        of = {"dataset": model} if model else {}
        answered = await self.batcher.ask(self._checked({"text": _last_message(body), **of}))
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model or self.names[0]}
        reason = "length" if answered.get("cut") else "stop"
        if body.get("stream"):
            return Response(_streamed(about, answered["answer"], reason), media_type="text/event-stream")
        message = {"role": "assistant", "content": answered["answer"]}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        more = {key: value for key, value in answered.items() if key not in ("text", "answer", "dataset")}
        return _json({**about, "object": "chat.completion", "choices": [choice], "anit": more})

    def _let_in(self, request: Request) -> None:
        if self.api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.api_key.encode()):
                raise _Refused(401, "this server wants its key as a bearer token")

    async def _body_of(self, request: Request) -> dict[str, Any]:
        """The request's JSON object, read once its key is right."""
        self._let_in(request)
        raw = b""
        async for piece in request.stream():
            raw += piece
            if len(raw) > _LARGEST:
                raise _Refused(413, f"a request has at most {_LARGEST:,} bytes")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "the request is no JSON") from error
        if not isinstance(body, dict):
            raise _Refused(400, "the request is no JSON object")
        return body

    def _checked(self, row: Row) -> Row:
        try:
            self.run.check(row, "the request")
        except InputError as error:
            raise _Refused(400, str(error)) from error
        return row


def _answer(run: FinishedRun, rows: Sequence[Row], constrained: bool) -> list[Row]:
    placed = [(f"text {number}", row) for number, row in enumerate(rows, start=1)]
    # A threshold moves the choice of a label, so there is one where labels are many too.
    probabilities = True if run.thresholds.labels else None
    answers = run.answer(placed, constrained=constrained, probabilities=probabilities)
    return [row for answered in answers for row in answered]


def _json(content: Mapping[str, Any]) -> Response:
    """What is not finite is null, as in the files of `anit predict`."""
    return JSONResponse(finite_or_null(content))


def _name(body: Mapping[str, Any], field: str) -> str | None:
    """A name that a request gives, None where it gives none."""
    name = body.get(field)
    if name is not None and not (isinstance(name, str) and name.isprintable()):
        raise _Refused(400, f"`{field}` is a name")
    return name


def _last_message(body: Mapping[str, Any]) -> object:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise _Refused(400, '`messages` is a list of {"role": "user", "content": text}; the last one is answered')
    content = messages[-1].get("content")
    if isinstance(content, list):  # OpenAI's parts
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return content


def _streamed(about: Mapping[str, Any], answer: str, reason: str) -> str:
    """The answer as one event, for clients that only stream: it is short and made at once."""
    whole = {"role": "assistant", "content": answer}
    events = [
        {**about, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": ends}]}
        for delta, ends in ((whole, None), ({}, reason))
    ]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def _refuse(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _Refused) else 400 if isinstance(error, InputError) else 500
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    why = str(error) if status != 500 else "the server failed; its log says why"
    return JSONResponse({"error": {"message": why, "type": kind}}, status_code=status)
