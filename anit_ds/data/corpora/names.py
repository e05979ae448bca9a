"""What a split is called in file names and on the hub."""

from __future__ import annotations

SPLITS = ("train", "dev", "test")
NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val", "devel", "development", "testa"),
    "test": ("test", "testb"),
}
"""The first of a split's names that is there is the split."""
