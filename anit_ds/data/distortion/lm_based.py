"""LM-based distortion: d'_i = 1 - cos(E(noisy), E(raw)), clipped to [0, 1] (docs/method.md section 3).

Only distinct texts that the cache does not hold are embedded, in batches limited by count and by tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from anit_ds.data.distortion.cache import EmbeddingCache, Vector
from anit_ds.data.distortion.embedders import Embedder, LocalEmbedder, ServiceEmbedder
from anit_ds.errors import ServiceError, shown
from anit_ds.files import checkpoint_hash, user_cache

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig

LOCAL_BATCH = 32
"""Texts per forward pass of a local model: more gain nothing on a CPU and cost memory."""


@dataclass(frozen=True)
class Estimate:
    """What measuring would cost: `texts` distinct ones, of which `cached` are there; calls and tokens for the rest.

    Tokens are estimated at four bytes of UTF-8 each.
    """

    texts: int
    cached: int
    calls: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.texts} distinct texts, {self.cached} of them cached; "
            f"about {self.tokens} tokens to embed in {self.calls} calls"
        )


class LmDistortion:
    """Measures pairs of texts with one embedding model and one cache. The model is loaded when first needed."""

    def __init__(self, config: DistortionConfig) -> None:
        self._config = config
        if config.local:  # a folder is known by what is in it: another project's may have the same name
            folder = Path(config.model)
            name = f"local {checkpoint_hash(folder) if folder.is_dir() else config.model}"
        else:
            name = f"service {config.base_url or 'openai'} {config.model}"
        path = Path(config.cache) if config.cache else user_cache() / "embeddings.sqlite"
        self._cache = EmbeddingCache(path, name)

    @cached_property
    def _embedder(self) -> Embedder:
        return LocalEmbedder(self._config) if self._config.local else ServiceEmbedder(self._config)

    def estimate(self, texts: Iterable[str]) -> Estimate:
        """Calls and tokens for the distinct texts, without any call."""
        distinct = list(dict.fromkeys(texts))
        cached = self._cache.get(distinct)
        batches = list(self._batches([text for text in distinct if text not in cached]))
        tokens = sum(estimated_tokens(text) for batch in batches for text in batch)
        return Estimate(len(distinct), len(cached), len(batches), tokens)

    def distances(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """d'_i in [0, 1] of each (noisy, raw) pair."""
        vectors = self._vectors(dict.fromkeys(text for pair in pairs for text in pair))
        return [cosine_distance(vectors[noisy], vectors[raw]) for noisy, raw in pairs]

    def _vectors(self, texts: Iterable[str]) -> dict[str, Vector]:
        texts = list(texts)
        vectors = self._cache.get(texts)
        missing = [text for text in texts if text not in vectors]
        with tqdm(total=len(missing), unit="text", desc="embedding", disable=None) as bar:
            for batch in self._batches(missing):
                made = dict(zip(batch, self._embedder.embed(batch), strict=True))
                if odd := next((text for text, vector in made.items() if not np.isfinite(vector).all()), None):
                    raise ServiceError(f"{self._config.model} gave a vector with NaN or infinity for {shown(odd)}")
                self._cache.put(made)
                vectors.update(made)
                bar.update(len(batch))
        return vectors

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        limit = min(self._config.batch_size, LOCAL_BATCH) if self._config.local else self._config.batch_size
        batch: list[str] = []
        tokens = 0
        for text in texts:
            cost = estimated_tokens(text)
            if batch and (len(batch) == limit or tokens + cost > self._config.max_batch_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append(text)
            tokens += cost
        if batch:
            yield batch


def estimated_tokens(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass")) // 4 + 1


def cosine_distance(a: Vector, b: Vector) -> float:
    """1 - cos(a, b), clipped to [0, 1]; 1 where a vector is zero. Raises ValueError for NaN and infinity, which would
    count as no distance at all."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("an embedding is not finite, so it is at no distance from another")
    if np.array_equal(a, b):
        return 0.0
    first, second = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return min(1.0, max(0.0, 1.0 - float(first @ second) / norms)) if norms else 1.0
