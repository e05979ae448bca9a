"""Two ways from texts to vectors: an OpenAI-compatible service, and a local transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from anit_ds.data.distortion.service import client, explained_errors
from anit_ds.errors import InputError, ServiceError, first_line

if TYPE_CHECKING:
    from anit_ds.config import DistortionConfig


class Embedder(Protocol):
    """Makes vectors."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row per text: [texts, D]."""
        ...


class ServiceEmbedder:
    """Embeddings from an OpenAI-compatible endpoint, one request per call of `embed`."""

    def __init__(self, config: DistortionConfig) -> None:
        self._model = config.model
        self._client = client(config.base_url, timeout=config.timeout, max_retries=config.max_retries)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Raises InputError for a refused request and ServiceError for a service that keeps failing."""
        with explained_errors(f"embedding {len(texts)} texts with {self._model}"):
            answer = self._client.embeddings.create(model=self._model, input=list(texts))
        rows = [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]
        if len(rows) != len(texts):
            raise ServiceError(f"{self._model}: asked for {len(texts)} embeddings, the service sent {len(rows)}")
        vectors = np.asarray(rows, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise ServiceError(f"{self._model}: the service sent an embedding that is not finite")
        return vectors


class LocalEmbedder:
    """The masked mean of a transformers model's last hidden states (what most sentence-embedding models expect)."""

    def __init__(self, config: DistortionConfig) -> None:
        """Loads torch and the model. Raises InputError when the model cannot be loaded."""
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(config.model)
            self._model = AutoModel.from_pretrained(config.model).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"distortion.model: cannot load {config.model!r} ({first_line(error)})") from error

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        import torch

        longest = getattr(self._model.config, "max_position_embeddings", 512)
        batch = self._tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state  # [B, T, D]
        mask = batch["attention_mask"].unsqueeze(-1)  # [B, T, 1]
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors: npt.NDArray[np.float32] = mean.float().numpy()
        return vectors
