"""Embeddings on disk: what comes back is what was put, or nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from anit_ds.data.distortion.cache import EmbeddingCache
from anit_ds.data.distortion.lm_based import cosine_distance
from anit_ds.errors import InputError

VECTOR = np.array([1.0, -2.5, 3.0], dtype=np.float32)


def stored(path: Path, change: str, *values: object) -> dict[str, np.ndarray]:
    """What the cache has of "a" and "b" after a change behind its back."""
    EmbeddingCache(path, "model").put({"a": VECTOR, "b": VECTOR})
    with sqlite3.connect(path) as database:
        database.execute(change, values)
    return EmbeddingCache(path, "model").get(["a", "b"])


def test_a_vector_that_was_not_put_there_is_none(tmp_path: Path) -> None:
    raw = bytearray(VECTOR.astype("<f4").tobytes())
    raw[1] ^= 1
    one = "WHERE rowid = (SELECT min(rowid) FROM embeddings)"
    assert len(stored(tmp_path / "flipped", f"UPDATE embeddings SET vector = ? {one}", bytes(raw))) == 1
    assert stored(tmp_path / "exchanged", "UPDATE embeddings SET hash = (SELECT max(hash) FROM embeddings)").keys() < {
        "a",
        "b",
    }


def test_a_file_of_an_older_version_is_read_but_for_nan(tmp_path: Path) -> None:
    found = stored(tmp_path / "old", "UPDATE embeddings SET hash = NULL")
    assert all(np.array_equal(found[text], VECTOR) for text in ("a", "b"))
    nan = np.full(3, np.nan, dtype="<f4").tobytes()
    assert not stored(tmp_path / "nan", "UPDATE embeddings SET hash = NULL, vector = ?", nan)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    EmbeddingCache(path, "model").put({str(number): VECTOR for number in range(2000)})
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x55" * (len(raw) - 4096)
    path.write_bytes(raw)
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"cannot use {path}"):
        EmbeddingCache(path, "model").get(["1", "2"])


def test_nan_is_no_distance() -> None:
    with pytest.raises(ValueError, match="not finite"):
        cosine_distance(np.array([np.nan, 1.0], dtype=np.float32), VECTOR[:2])
