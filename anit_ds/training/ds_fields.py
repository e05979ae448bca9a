"""Whether DeepSpeed understands a configuration: DeepSpeed's own reader is asked, before anything is loaded.

Its sections refuse unknown keys by themselves. At the top it ignores them without a word, so what it looks for is
listened to: a key that it never asks for is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from functools import cache
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.utils import logger
from pydantic import ValidationError

from anit_ds.errors import InputError, first_line, nearest, shown

_ASKED_LATER = {"sequence_parallel_size"}
"""Keys that DeepSpeed reads elsewhere, or only once ranks have met."""
_PLAIN: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10,
}  # fmt: skip
_OBJECTS_READ_BY_KEY: tuple[str, ...] = ("data_types", "activation_checkpointing")
"""Sections without a model that would refuse unknown keys."""


def check_deepspeed_config(source: str, config: dict[str, Any]) -> None:
    """Raises InputError naming `source` and the first key that is unknown, or whose value DeepSpeed does not take.

    config: micro-batch and accumulation given, without a global batch, whose ranks need not have met yet.
    """
    plain, known = _plain_and_known()
    for key in config:
        if key not in known:
            raise InputError(f"{source}: {shown(key)}: unknown key; {nearest(key, sorted(known))}")
    try:
        read, _, asked_within = _read(config)
    except ValidationError as error:
        problem = error.errors()[0]
        field = [str(part) for part in problem["loc"]]
        inside = [key for key, value in config.items() if isinstance(value, dict) and field and field[0] in value]
        named = f"{source}: {'.'.join([*inside[:1], *field])}"
        if problem["type"] == "extra_forbidden":
            raise InputError(f"{named}: unknown key") from error
        message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}".replace("2, 3 or 3", "2 or 3")  # an alias
        raise InputError(f"{named}: {message}, not {shown(problem['input'])}") from error
    except Exception as error:  # asserts, its own and Python's: whatever it dies of, the JSON is at fault
        raise InputError(f"{source}: DeepSpeed does not take it ({first_line(error)})") from error
    for section in _OBJECTS_READ_BY_KEY:
        names = asked_within[section]
        for key in config.get(section, {}):
            if key not in names:
                raise InputError(f"{source}: {section}.{key}: unknown key; {nearest(key, sorted(names))}")
    for key, value in config.items():
        default = getattr(plain, key, None)
        if isinstance(default, bool | int | float | str) and not _is_like(getattr(read, key), default):
            raise InputError(f"{source}: {key} is {shown(value)}, where DeepSpeed has {default!r} by default")


@cache
def _plain_and_known() -> tuple[DeepSpeedConfig, frozenset[str]]:
    """DeepSpeed's defaults, and the keys it takes."""
    plain, asked, _ = _read(_PLAIN)
    # bfloat16 is bf16's old name, which is not looked at where bf16 is there, as it always is.
    return plain, frozenset({key for key in asked if _is_taken(key)} | _ASKED_LATER) - {"bfloat16"}


class _Listening(dict[str, Any]):
    """A dictionary that knows which keys it was asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def keys(self) -> Any:
        return KeysView(self)

    def __copy__(self) -> _Listening:
        return self


def _read(config: dict[str, Any]) -> tuple[DeepSpeedConfig, set[str], dict[str, set[str]]]:
    """DeepSpeed's reading of it, the keys that it asked for at the top, and those in sections that it reads by key."""
    sections = {name: _Listening(config.get(name, {})) for name in _OBJECTS_READ_BY_KEY}
    listening = _Listening({**config, **{name: section for name, section in sections.items() if name in config}})
    with _quiet():
        read = DeepSpeedConfig(listening)
    return read, listening.asked, {name: section.asked for name, section in sections.items()}


def _is_taken(key: str) -> bool:
    """Whether DeepSpeed asks for a key to use it, not to say that it has been removed."""
    try:
        _read({**_PLAIN, key: {}})
    except Exception as error:
        return "has been removed" not in str(error)
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed logs each reading."""
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, int | float) else type(default))
