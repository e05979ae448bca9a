"""Embeddings kept on disk, so that an interrupted or repeated run asks (and pays) for no text twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anit_ds.errors import InputError

Vector = npt.NDArray[np.float32]


class EmbeddingCache:
    """Vectors by (model, text) in one SQLite file; only hashes of the texts are stored, and nothing of a service.

    What `put` has returned from survives a kill. Several processes may use one file.
    """

    def __init__(self, path: Path, model: str) -> None:
        """`model` names what made the vectors. Raises InputError when the file cannot be opened or written."""
        self._model = blake2b(model.encode(), digest_size=16).digest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"distortion.cache: cannot use {path} ({error})") from error

    def _row(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=self._model).digest()

    def get(self, texts: Iterable[str]) -> dict[str, Vector]:
        """The vectors [D] of those texts that are there."""
        found = {}
        for text in texts:
            row = self._db.execute("SELECT vector FROM embeddings WHERE key = ?", (self._row(text),)).fetchone()
            if row is not None:
                found[text] = np.frombuffer(row[0], dtype="<f4")
        return found

    def put(self, vectors: Mapping[str, Vector]) -> None:
        rows = [(self._row(text), vector.astype("<f4").tobytes()) for text, vector in vectors.items()]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
        self._db.execute("COMMIT")
