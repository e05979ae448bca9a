"""Runs that several tests of a file look at, each trained once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anit_ds.config import Config
from anit_ds.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], Config]:
    """`trained(config)` is a finished run of it that a file's tests share: to look at and to copy, not to change."""
    runs: dict[str, Config] = {}

    def find(config: Config) -> Config:
        asked = config.model_copy(update={"out": ""}).to_yaml()
        if asked not in runs:
            run = config.model_copy(update={"out": str(tmp_path_factory.mktemp("trained"))})
            assert train(run) is not None
            runs[asked] = run
        return runs[asked]

    return find
