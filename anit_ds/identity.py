"""When two configurations ask for the same result: what a folder, an adapter and a cell of a comparison belong to."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel

from anit_ds.config import Config
from anit_ds.sealed import content_hash

# Fields that may change between two starts of one run: they move where or how fast it computes, not what.
_FREE_TO_CHANGE = {
    "out", "versions", "deepspeed", "eval.batch_size", "eval.whole_weights", "train.micro_batch", "train.keep",
    "train.checkpoint_every", "train.log_every", "train.report_to", "train.rank_timeout",
    "train.activation_checkpointing", "train.checkpoint_attack", "train.padding_free", "method.passes",
    "method.schedule", "model.attn",
}  # fmt: skip


# How long a run trains: the one in a folder may be asked for more.
_LENGTHS = {"train.epochs", "train.max_steps", "train.early_stopping_patience"}
_LATER = {"instructions_file", "columns", "separator"}


def identity(config: Config) -> dict[str, Any]:
    """Everything in a configuration that moves its result, as `path: value`."""

    def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in section.items():
            path = f"{prefix}{key}"
            if path in _FREE_TO_CHANGE or (path == "data.columns.separator" and value is None):
                continue
            if path == "data.mix":
                value = [_without_later(item) for item in value]
            out.update(flat(value, f"{path}.") if isinstance(value, dict) else {path: value})
        return out

    return flat(config.model_dump(mode="json", by_alias=True))


def _without_later(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that came later, where they say nothing."""
    said = {key: value for key, value in fields.items() if key not in _LATER or value is not None}
    return {key: _without_later(value) if isinstance(value, dict) else value for key, value in said.items()}


# Defaults that changed, as they were at first: a hash without the field goes on to mean this value.
_FIRST_DEFAULTS = {"lora.dropout": 0.05}


def chosen(config: Config) -> dict[str, Any]:
    """The part of `identity` that is not a field's first default. Neither a field that a later version adds nor a
    default that it changes makes another configuration of an old one."""
    return _unlike({**_defaults(Config), **_FIRST_DEFAULTS}, config)


def not_at_default(config: Config) -> dict[str, Any]:
    """The part of `identity` that is not a field's default of today: what to tell a reader of a configuration."""
    return _unlike(_defaults(Config), config)


def _unlike(defaults: dict[str, Any], config: Config) -> dict[str, Any]:
    return {path: value for path, value in identity(config).items() if path not in defaults or defaults[path] != value}


# Where things lie, which a move changes; what lies there has checksums of its own or is the model.
_PLACES = {
    "model.name_or_path", "data.path", "data.instructions_file", "distortion.model", "distortion.cache",
    "lora.init_from",
}  # fmt: skip


def configuration_hash(config: Config) -> str:
    """One hash of what a configuration asks for, wherever its files lie: what adapters and checkpoints belong to."""
    kept = {path: value for path, value in chosen(config).items() if path not in _PLACES}
    if "data.mix" in kept:
        kept["data.mix"] = [
            {key: value for key, value in item.items() if key not in ("path", "instructions_file")}
            for item in kept["data.mix"]
        ]
    return content_hash(kept)


def same_result(recorded: dict[str, Any], config: Config) -> bool:
    """Whether a run of the recorded identity, perhaps of an older version with fewer fields, is one of `config`."""
    now, defaults = identity(config), _defaults(Config)
    return all(recorded.get(path, defaults.get(path)) == value for path, value in now.items()) and recorded.keys() <= (
        now.keys()
    )


def _defaults(schema: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        path, nested = f"{prefix}{field.alias or name}", field.annotation
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            found |= _defaults(type(value), f"{path}.")
        elif isinstance(nested, type) and issubclass(nested, BaseModel):
            found |= _defaults(nested, f"{path}.")
        elif not field.is_required():
            found[path] = list(value) if isinstance(value, tuple) else value
    return found


def differences(a: Config, b: Config, *, places: bool = False) -> list[str]:
    """The fields in which two configurations ask for different results, as `path: value there, value here`; with
    `places` only those that say where something lies. How long a run trains is none of them."""
    one, two = identity(a), identity(b)
    keys = [key for key in _different(one, two) if key not in _LENGTHS and (not places or key in _PLACES)]
    return [f"{key}: {one.get(key)!r} there, {two.get(key)!r} here" for key in keys]


def differ_in_length(a: Config, b: Config) -> bool:
    """Whether two configurations ask for the same run, of another number of steps or with another patience."""
    found = _different(identity(a), identity(b))
    return bool(found) and _LENGTHS.issuperset(found)


def _different(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return [key for key in {**one, **two} if one.get(key) != two.get(key)]


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every path that leads somewhere from the working directory written from the root, so that
    it means the same in every other one."""

    def absolute(value: Any) -> Any:
        return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value

    data = config.data.model_copy(update={
        "path": absolute(config.data.path),
        "instructions_file": absolute(config.data.instructions_file),
        "mix": [
            item.model_copy(
                update={"path": absolute(item.path), "instructions_file": absolute(item.instructions_file)}
            )
            for item in config.data.mix
        ],
    })  # fmt: skip
    measure = config.distortion
    return config.model_copy(update={
        "model": config.model.model_copy(update={"name_or_path": absolute(config.model.name_or_path)}),
        "data": data,
        "distortion": measure.model_copy(update={"model": absolute(measure.model) if measure.local else measure.model}),
        "lora": config.lora and config.lora.model_copy(update={"init_from": absolute(config.lora.init_from)}),
        "deepspeed": absolute(config.deepspeed),
    })  # fmt: skip
