"""`anit serve` as its clients meet it: a real server, the openai package, and what `anit predict` says."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from browser import Browser
from forked import Program

from anit_ds.commands.cli import main
from anit_ds.errors import InputError
from anit_ds.serving.app import shortened
from anit_ds.serving.batcher import Batcher

pytest.importorskip("uvicorn", reason="anit serve needs the extra `serve`")
KEY = "hunter2"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("server") / "said"
    server = Program("anit", "serve", run, "--port", port, output=said, ANIT_API_KEY=KEY)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, f"it did not come up: {server.said()}"
            time.sleep(0.2)
    yield url
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0, server.said()


def post(url: str, body: Any, key: str = KEY) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, raw, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_predict_says_what_the_command_says(address: str, predicted: list[dict[str, Any]]):
    status, reply = post(f"{address}/predict", {"texts": [row["text"] for row in predicted]})
    assert status == 200
    for row, expected in zip(reply["rows"], predicted, strict=True):
        likely = (row.pop("probabilities"), expected["probabilities"])
        assert {**row, "probabilities": 0} == {**expected, "probabilities": 0}
        assert likely[0] == pytest.approx(likely[1], abs=1e-4)


def test_the_openai_package_is_answered(address: str, predicted: list[dict[str, Any]]):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == ["jsonl"]

    def ask(row: dict[str, Any]) -> str | None:
        chat = client.chat.completions.create(model="jsonl", messages=[{"role": "user", "content": row["text"]}])
        assert chat.choices[0].finish_reason == ("length" if row.get("cut") else "stop")
        return chat.choices[0].message.content

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(ask, predicted)) == [row["answer"] for row in predicted]
    asked = {"model": "jsonl", "messages": [{"role": "user", "content": predicted[0]["text"]}]}
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == predicted[0]["answer"]
    whole = client.chat.completions.create(**asked, max_tokens=1, stop=["\n"])
    assert whole.usage == last.usage and whole.usage.prompt_tokens > 10 and whole.usage.completion_tokens <= 1
    assert client.models.retrieve("jsonl").owned_by == "anit-ds"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4o")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("predict", b"{", 400, "no JSON"), ("predict", [], 400, "no JSON object"),
        ("predict", {}, 400, 'expected an object with a "text"'),
        ("predict", {"text": "\ud83d"}, 400, "half a character"),
        ("predict", {"texts": []}, 400, "`texts` is a list"), ("predict", {"text": "x" * (1 << 20)}, 413, "at most"),
        ("v1/chat/completions", {}, 400, "`messages` is a list"),
        ("v1/chat/completions", {"n": 2, "messages": [{"content": "a"}]}, 400, "there is one"),
        ("v1/chat/completions", {"stream": "no", "messages": [{"content": "a"}]}, 400, "`stream` is true or false"),
        ("v1/chat/completions", {"model": [1], "messages": [{"content": "a"}]}, 400, "`model` is a name"),
        ("predict", {"text": "a", "dataset": "b"}, 400, "there is jsonl"), ("v2", {}, 404, "POST /v2: Not Found"),
        ("health", {}, 405, "Method Not Allowed"),
        ("v1/chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, 400, "the assistant's own"),
        ("v1/chat/completions", {"max_tokens": 0, "messages": [{"content": "a"}]}, 400, "1 or more"),
        ("v1/chat/completions", {"stop": [1], "messages": [{"content": "a"}]}, 400, "a list of texts"),
        ("v1/chat/completions", {"tools": [{}], "messages": [{"content": "a"}]}, 400, "calls nothing"),
        ("v1/chat/completions", {"logprobs": True, "messages": [{"content": "a"}]}, 400, "probabilities"),
        ("v1/chat/completions", {"response_format": {"type": "json_object"}, "messages": [{"content": "a"}]}, 400,
         "/predict gives"),
        ("v1/chat/completions", {"model": "gpt-4o", "messages": [{"content": "a"}]}, 404, "there is jsonl"),
        ("predict", b'{"text": "a", "dataset": NaN}', 400, "`dataset` is a name"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_sentence(address: str, path: str, body: Any, status: int, said: str):
    found, reply = post(f"{address}/{path}", body)
    assert found == status and said in reply["error"]["message"]


@pytest.mark.parametrize(
    "most, stops, said",
    [
        (None, [], ("a b; c", False)), (9, [], ("a b; c", False)), (4, [], ("a b; c", False)), (3, [], ("a b;", True)),
        (None, [";", "b"], ("a ", False)), (1, [";"], ("a", True)), (3, [";"], ("a b", False)),
    ],
)  # fmt: skip
def test_an_answer_ends_where_a_client_says(most: int | None, stops: list[str], said: tuple[str, bool]):
    assert shortened("a b; c", [1, 3, 4, 6], most, stops) == said


def test_a_text_that_cannot_be_answered_is_its_own_matter():
    def answer(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["text"] == "bad" for row in rows):
            raise InputError("no such text")
        return [{**row, "answer": row["text"].upper()} for row in rows]

    async def asked() -> list[Any]:
        batcher = Batcher(answer, batch_size=8)
        running = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*(batcher.ask({"text": t}) for t in ("a", "bad", "b")), return_exceptions=True)
        running.cancel()
        return found

    first, wrong, last = asyncio.run(asked())
    assert (first["answer"], last["answer"]) == ("A", "B") and isinstance(wrong, InputError)


def test_the_key_is_asked_for_and_the_page_needs_none(address: str):
    assert post(f"{address}/predict", {"text": "a"}, key="guess")[0] == 401
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/v1/models")
    page = urllib.request.urlopen(address).read().decode()
    assert (
        "<title>Try a text</title>" in page
        and 'words = {"jsonl": {"positive": "positive", "negative": "negative"}}' in page
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_text_typed_on_the_page_is_answered(address: str, predicted: list[dict[str, Any]], tmp_path: Path):
    (asked, *_), said = predicted, "document.querySelector('#{}').textContent"
    with Browser(str(CHROMIUM), tmp_path / "profile") as page:
        page.look(width=390, height=780, scheme="dark")
        page("Page.navigate", url=address)
        page.until("document.readyState == 'complete' && document.querySelector('#text') == document.activeElement")
        # A dialog would stop the page until somebody answers it.
        page.value(f"window.prompt = () => window.answered ? null : (window.answered = '{KEY}')")
        page.type(asked["text"])
        page.value("document.querySelector('#ask').click()")
        page.until("document.querySelector('#table').rows.length == 2")
        assert page.value(said.format("answer")) == (asked["answer"] or "(an empty answer)")
        likely = sorted(asked["probabilities"].items(), key=lambda pair: -pair[1])
        cells = page.value("[...document.querySelectorAll('#table tr')].map(row => row.innerText.split('\\t'))")
        assert [(label, pytest.approx(float(p), abs=1e-3)) for label, p, *_ in cells] == likely
        assert page.value("document.documentElement.scrollWidth") <= 390, "nothing is cut off on a phone"
        page.value("document.querySelector('#text').value = ' '")
        page.value("document.querySelector('#form').requestSubmit()")
        assert "the text is blank" in page.until(said.format("error"))


def test_what_is_wrong_with_a_run_is_said_before_the_port_is_open(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def serve(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["anit", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            main()
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in serve(run, "--port", port)
    assert "--host: nohost.invalid is no address" in serve(run, "--host", "nohost.invalid")
    assert "no run here" in serve(tmp_path)
    assert "--constrained: is for tasks with spans" in serve(run, "--constrained")
