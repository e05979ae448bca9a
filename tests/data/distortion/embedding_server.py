"""An OpenAI-compatible server on loopback for tests: embeddings and chat answers, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import numpy as np
from jsonhandler import JsonHandler

Embed = Callable[[Sequence[str]], list[list[float]]]


def hashing_embedder(texts: Sequence[str], width: int = 64) -> list[list[float]]:
    """Sums of pseudo-random word vectors: texts with common words are close, and every run agrees."""
    rows = []
    for text in texts:
        row = np.zeros(width, dtype=np.float32)
        for word in text.split() or [""]:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=width).digest()
            row += np.frombuffer(digest, dtype=np.uint8).astype(np.float32) / 255 - 0.25
        rows.append(row.tolist())
    return rows


class EmbeddingServer:
    """`requests` lists the texts of every embedding request that arrived, `answered` of those that got vectors.

    `faults` are taken one a request, in turn: "401", "429", "500", "hang" or "drop".
    """

    def __init__(self, embed: Embed = hashing_embedder, chat: Callable[[str], str] = str.upper) -> None:
        self.embed, self.chat = embed, chat
        self.faults: list[str] = []
        self.requests: list[list[str]] = []
        self.answered: list[list[str]] = []
        self.prompts: list[str] = []
        self.authorization: set[str] = set()
        self.on_answer: Callable[[], None] = lambda: None
        server = self

        class Handler(JsonHandler):
            def do_POST(self) -> None:
                server.answer(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[EmbeddingServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def answer(self, handler: JsonHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.authorization.add(handler.headers.get("Authorization", ""))
        if "input" in body:
            self.requests.append(body["input"])
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("429", "500", "401"):
            handler.reply({"error": {"message": f"no: {handler.headers['Authorization']}"}}, int(fault))
        elif fault == "drop":
            handler.connection.close()
        elif fault == "hang":
            time.sleep(3)
        elif "input" in body:
            rows = self.embed(body["input"])
            data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
            # Out of order on purpose: the index says which is which.
            handler.reply({"object": "list", "model": body["model"], "data": data[::-1], "usage": _USAGE})
            self.answered.append(body["input"])
            self.on_answer()
        else:
            self.prompts.append(body["messages"][-1]["content"])
            message = {"role": "assistant", "content": self.chat(self.prompts[-1])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            handler.reply({"id": "1", "object": "chat.completion", "created": 0, "choices": [choice], "model": "m"})


_USAGE = {"prompt_tokens": 1, "total_tokens": 1}
