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
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from anit_ds.errors import InputError, shown
from anit_ds.evaluation.finished import FinishedRun
from anit_ds.files import finite_or_null
from anit_ds.serving.batcher import Batcher, Row

_LARGEST = 1 << 20  # bytes of a request
_MOST_TEXTS = 1000
_TOKENS = "_tokens"  # of a row: the prompt's, and where in the answer each of its own ends


class _Refused(Exception):
    """A request that cannot be answered: its status, why in a sentence, and OpenAI's code where clients ask for it."""

    def __init__(self, status: int, why: str, code: str | None = None) -> None:
        super().__init__(why)
        self.status, self.code = status, code


def build_app(run: FinishedRun, *, api_key: str | None = None, constrained: bool = False) -> Starlette:
    """The application for a run whose model is loaded. With `api_key` a request must carry it as a bearer token."""
    service = _Service(run, api_key=api_key, constrained=constrained)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/models/{name}", service.model),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/predict", service.predict, methods=["POST"]),
        ],
        exception_handlers={kind: _refuse for kind in (_Refused, InputError, HTTPException, Exception)},
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
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self.names]})

    async def model(self, request: Request) -> Response:
        self._let_in(request)
        self._known(request.path_params["name"], "model", 404)
        return JSONResponse(self._described(request.path_params["name"]))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.since, "owned_by": "anit-ds"}

    async def predict(self, request: Request) -> Response:
        body = await self._body_of(request)
        texts = body.get("texts", [body["text"]] if "text" in body else None)
        if texts is None:
            raise _Refused(400, 'the request: expected an object with a "text" or "texts"')
        if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_TEXTS:
            raise _Refused(400, f"`texts` is a list of 1 to {_MOST_TEXTS} texts")
        of = self._known(_name(body, "dataset"), "dataset", 400)
        rows = [self._checked({"text": text, **of}) for text in texts]
        answered = await asyncio.gather(*map(self.batcher.ask, rows))
        for row in answered:
            del row[_TOKENS]
        return _json(answered[0] if "texts" not in body else {"rows": answered})

    async def chat(self, request: Request) -> Response:
        body = await self._body_of(request)
        _refuse_what_is_not_done(body)
        most, stops = _most_tokens(body), _stops(body)
        model = _name(body, "model")
        of = self._known(model, "model", 404)
        answered = await self.batcher.ask(self._checked({"text": _last_message(body), **of}))
        prompt, ends = answered.pop(_TOKENS)
        said, cut = shortened(answered["answer"], ends, most, stops)
        reason = "length" if cut or (answered.get("cut") and said == answered["answer"]) else "stop"
        tokens = sum(end <= len(said) for end in ends)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model or self.names[0]}
        if body.get("stream"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            events = _streamed(about, said, reason, usage if asked else None)
            return Response(events, media_type="text/event-stream")
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": reason}
        more = {key: value for key, value in answered.items() if key not in ("text", "answer", "dataset")}
        return _json({**about, "object": "chat.completion", "choices": [choice], "usage": usage, "anit": more})

    def _known(self, name: str | None, field: str, status: int) -> dict[str, str]:
        """Which data set a request asks, as an object of `FinishedRun.answer` says it; nothing where it names none."""
        if name is None:
            return {}
        if name not in self.names:
            why = f"`{field}`: {shown(name)} is not served here; there is {', '.join(self.names)}"
            raise _Refused(status, why, "model_not_found" if field == "model" else None)
        return {"dataset": name}

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
    return [{**row, _TOKENS: run.tokens_of(row)} for answered in answers for row in answered]


def _json(content: Mapping[str, Any]) -> Response:
    """What is not finite is null, as in the files of `anit predict`."""
    return JSONResponse(finite_or_null(content))


def _name(body: Mapping[str, Any], field: str) -> str | None:
    """A name that a request gives, None where it gives none."""
    name = body.get(field)
    if name is not None and not (isinstance(name, str) and name.isprintable()):
        raise _Refused(400, f"`{field}` is a name")
    return name


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    """What a client would take for done, were it ignored."""
    if body.get("n") not in (None, 1):
        raise _Refused(400, "`n`: answers are greedy, so there is one")
    if not isinstance(body.get("stream"), bool | None):
        raise _Refused(400, "`stream` is true or false")
    if not isinstance(body.get("stream_options"), dict | None):
        raise _Refused(400, "`stream_options` is an object")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise _Refused(400, "`response_format`: answers are texts; /predict gives their items as JSON")
    if body.get("logprobs"):
        raise _Refused(400, "`logprobs`: not of tokens; `anit` of the reply has a label's probabilities")
    if body.get("tools"):
        raise _Refused(400, "`tools`: this model was trained to answer texts, and calls nothing")


def _most_tokens(body: Mapping[str, Any]) -> int | None:
    given = body.get("max_completion_tokens")
    most = body.get("max_tokens") if given is None else given
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise _Refused(400, "`max_tokens` is a number of tokens, 1 or more")
    return most


def _stops(body: Mapping[str, Any]) -> list[str]:
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _Refused(400, "`stop` is a text or a list of texts")
    return stops


def shortened(answer: str, ends: Sequence[int], most: int | None, stops: Sequence[str]) -> tuple[str, bool]:
    """The answer up to the first of `stops` or to `most` of its tokens, which end at `ends`; whether these cut it."""
    cut = most is not None and most < len(ends)
    said = answer[: ends[most - 1]] if cut and most else answer
    at = [place for stop in stops if (place := said.find(stop)) >= 0]
    return (said[: min(at)], False) if at else (said, cut)


def _last_message(body: Mapping[str, Any]) -> object:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise _Refused(400, '`messages` is a list of {"role": "user", "content": text}; the last one is answered')
    if messages[-1].get("role") == "assistant":
        raise _Refused(400, "`messages`: the last one is answered, and it is the assistant's own")
    content = messages[-1].get("content")
    if isinstance(content, list):  # OpenAI's parts
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return content


def _streamed(about: Mapping[str, Any], answer: str, reason: str, usage: Mapping[str, int] | None) -> str:
    """The answer as one event, for clients that only stream: it is short and made at once."""
    whole, chunk = {"role": "assistant", "content": answer}, {**about, "object": "chat.completion.chunk"}
    events = [
        {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": ends}]}
        for delta, ends in ((whole, None), ({}, reason))
    ]
    if usage:
        events.append({**chunk, "choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def _refuse(request: Request, error: Exception) -> Response:
    status, code, why = 500, None, "the server failed; its log says why"
    if isinstance(error, _Refused):
        status, code, why = error.status, error.code, str(error)
    elif isinstance(error, InputError):
        status, why = 400, str(error)
    elif isinstance(error, HTTPException):  # no such address, or not asked this way
        status, why = error.status_code, f"{request.method} {request.url.path}: {error.detail}"
    kind = {401: "authentication_error", 500: "server_error"}.get(status, "invalid_request_error")
    told = {"message": why, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": told}, status_code=status)
