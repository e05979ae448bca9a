"""Embeddings kept on disk, so that an interrupted or repeated run asks (and pays) for no text twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anit_ds.errors import InputError

Vector = npt.NDArray[np.float32]


class EmbeddingCache:
    """Vectors by (model, text) in one SQLite file; only hashes of the texts are stored, and nothing of a service.

    What `put` has returned from survives a kill. Several processes may use one file. A vector that is not what was put
    there, by its hash, is as good as none; those of an older version have no hash and must be finite.
    """

    def __init__(self, path: Path, model: str) -> None:
        """`model` names what made the vectors. Raises InputError when the file cannot be opened or written."""
        self._path = path
        self._model = blake2b(model.encode(), digest_size=16).digest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            with suppress(sqlite3.OperationalError):  # it has the column already
                self._db.execute("ALTER TABLE embeddings ADD COLUMN hash BLOB")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"distortion.cache: cannot use {path} ({error})") from error

    def _row(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=self._model).digest()

    def get(self, texts: Iterable[str]) -> dict[str, Vector]:
        """The vectors [D] of those texts that are there. Raises InputError where the file is damaged."""
        found = {}
        for text in texts:
            key = self._row(text)
            try:
                row = self._db.execute("SELECT vector, hash FROM embeddings WHERE key = ?", (key,)).fetchone()
            except sqlite3.DatabaseError as error:
                raise self._damaged(error) from error
            if row is not None and (vector := _sound(key, *row)) is not None:
                found[text] = vector
        return found

    def put(self, vectors: Mapping[str, Vector]) -> None:
        """Keep vectors. Raises InputError where the file is damaged or cannot be written."""
        keyed = [(self._row(text), vector.astype("<f4").tobytes()) for text, vector in vectors.items()]
        rows = [(key, vector, _hash(key, vector)) for key, vector in keyed]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO embeddings (key, vector, hash) VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: sqlite3.Error) -> InputError:
        return InputError(f"distortion.cache: cannot use {self._path} ({error}); where it is damaged, delete it")


def _hash(key: bytes, vector: bytes) -> bytes:
    return blake2b(vector, digest_size=16, key=key).digest()


def _sound(key: bytes, stored: object, digest: object) -> Vector | None:
    """The vector, where it is the one that was put under this key."""
    if not isinstance(stored, bytes) or len(stored) % 4 or (digest is not None and digest != _hash(key, stored)):
        return None
    vector: Vector = np.frombuffer(stored, dtype="<f4")
    return vector if np.isfinite(vector).all() else None
