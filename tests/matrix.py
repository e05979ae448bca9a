"""Rows that `make test` leaves to `make matrix`: one equality at more stages, ranks, methods or families."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rows(values: Iterable[Any], *, quick: Iterable[Any]) -> list[Any]:
    """`values` for `pytest.mark.parametrize`, those that are not in `quick` marked `matrix`."""
    kept = list(quick)
    return [value if value in kept else pytest.param(*_parts(value), marks=pytest.mark.matrix) for value in values]


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
