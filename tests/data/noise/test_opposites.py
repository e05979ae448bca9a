"""Opposite instructions written by a chat model on loopback: asked once, kept, and used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anit_ds.config import NoiseConfig
from anit_ds.data.instructions import load_instructions
from anit_ds.data.noise import opposites_for
from anit_ds.errors import ServiceError

sys.path.insert(0, str(Path(__file__).parents[1] / "distortion"))
from embedding_server import EmbeddingServer  # noqa: E402

INSTRUCTIONS = load_instructions("sst2")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")


def test_written_once_for_each_paraphrase_and_kept(tmp_path: Path) -> None:
    with EmbeddingServer(chat=lambda prompt: f" Do not:\n{prompt.splitlines()[-1]} ").running() as server:
        noise = NoiseConfig(kind="opposite", opposites="chat", base_url=server.url)
        server.faults = ["429", "500"]
        written = opposites_for(INSTRUCTIONS, "concise", noise)
        assert written == [f"Do not: {text}" for text in INSTRUCTIONS.concise]
        assert opposites_for(INSTRUCTIONS, "concise", noise) == written
        assert len(server.prompts) == len(INSTRUCTIONS.concise)
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_table_asks_nobody() -> None:
    noise = NoiseConfig(kind="opposite", base_url="http://127.0.0.1:9/v1")
    assert opposites_for(INSTRUCTIONS, "detailed", noise) == INSTRUCTIONS.opposite.detailed


def test_a_model_that_writes_nothing_is_an_error() -> None:
    with EmbeddingServer(chat=lambda prompt: "").running() as server:
        noise = NoiseConfig(kind="opposite", opposites="chat", base_url=server.url)
        with pytest.raises(ServiceError, match="wrote no opposite"):
            opposites_for(INSTRUCTIONS, "concise", noise)
