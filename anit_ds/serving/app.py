"""The HTTP application: what each address takes and gives.

GET  /                       a page to try a text
GET  /health                 {"status": "ok"}
GET  /v1/models              the run's data sets, by the names that `model` takes
POST /v1/chat/completions    OpenAI's form: the last message is the text, the reply the answer
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

from anit_ds.errors import InputError
from anit_ds.evaluation.finished import FinishedRun
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
    names = [data_set.name for data_set in run.data.sets]
    batcher = Batcher(lambda rows: _answer(run, rows, constrained), batch_size=run.config.eval.batch_size)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def body_of(request: Request) -> dict[str, Any]:
        if api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), api_key.encode()):
                raise _Refused(401, "this server wants its key as a bearer token")
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

    def checked(row: Row) -> Row:
        try:
            run.check(row, "the request")
        except InputError as error:
            raise _Refused(400, str(error)) from error
        if not row["text"].strip():
            raise _Refused(400, "the request: the text is blank")
        return row

    async def predict(request: Request) -> Response:
        body = await body_of(request)
        texts = body.get("texts", [body.get("text")])
        if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_TEXTS:
            raise _Refused(400, f"`texts` is a list of 1 to {_MOST_TEXTS} texts")
        of = {"dataset": body["dataset"]} if "dataset" in body else {}
        rows = [checked({"text": text, **of}) for text in texts]
        answered = await asyncio.gather(*map(batcher.ask, rows))
        return JSONResponse(answered[0] if "texts" not in body else {"rows": answered})

    async def chat(request: Request) -> Response:
        body = await body_of(request)
        if body.get("n", 1) != 1:
            raise _Refused(400, "`n`: answers are greedy, so there is one")
        model = body.get("model")
        of = {"dataset": model} if model in names else {}
        answered = await batcher.ask(checked({"text": _last_message(body), **of}))
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model or names[0]}
        reason = "length" if answered.get("cut") else "stop"
        if body.get("stream"):
            return Response(_streamed(about, answered["answer"], reason), media_type="text/event-stream")
        message = {"role": "assistant", "content": answered["answer"]}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        more = {key: value for key, value in answered.items() if key not in ("text", "answer", "dataset")}
        return JSONResponse({**about, "object": "chat.completion", "choices": [choice], "anit": more})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def page(request: Request) -> Response:
        html = files("anit_ds.serving").joinpath("page.html").read_text(encoding="utf-8")
        words = {data_set.name: data_set.instructions.labels for data_set in run.data.sets}
        return HTMLResponse(html.replace("{{ words }}", json.dumps(words).replace("<", "\\u003c")))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
        ],
        exception_handlers={_Refused: _refuse},
        lifespan=lifespan,
    )


def _answer(run: FinishedRun, rows: Sequence[Row], constrained: bool) -> list[Row]:
    placed = [(f"text {number}", row) for number, row in enumerate(rows, start=1)]
    return [row for answered in run.answer(placed, constrained=constrained) for row in answered]


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
    status = error.status if isinstance(error, _Refused) else 500
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": str(error), "type": kind}}, status_code=status)
