"""From a YAML file to a `Config`: overrides, and one sentence for whatever is wrong in it.

`load_config(path, overrides)` reads a file, applies dotted `key=value` overrides and returns a `Config`. What is
unknown or ill-typed raises `InputError` with the file, the line, the field's path and the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from anit_ds.config import Config
from anit_ds.errors import InputError

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read the YAML at `path` (a run's folder means its config.yaml), apply `section.key=value` overrides, validate.

    Raises InputError: no such file, not YAML, an unknown key, a wrong type, a value out of range.
    """
    return load_yaml(path, overrides, Config)


def load_yaml(
    path: str | Path,
    overrides: list[str] | tuple[str, ...],
    schema: type[Schema],
    expand: Callable[[dict[str, Any], Path], None] = lambda raw, path: None,
) -> Schema:
    """`load_config` for any schema. `expand` may complete what was read, before the overrides."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    try:
        raw = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(raw, dict):
        wanted = " and ".join(f"{name}:" for name in list(schema.model_fields)[:2])
        raise InputError(f"{path}: expected sections such as {wanted}, found {type(raw).__name__}")
    expand(raw, path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"{override!r}: an override is written key=value, such as train.lr=2e-4")
        try:
            set_field(raw, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value is not valid YAML") from error
    return _validated(raw, schema, source=str(path), tree=tree, overrides=overrides)


def validate(raw: dict[str, Any], *, source: str) -> Config:
    """`Config` from plain data; a problem becomes an InputError that names `source`."""
    return _validated(raw, Config, source=source)


def set_field(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries, making the sections that are not there.

    Raises InputError where a part of the path is a value and not a section.
    """
    *parents, last = path.split(".")
    at = raw
    for parent in parents:
        child = at.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"{path!r}: {parent} is a value in this configuration, not a section")
        at = child
    at[last] = value


def get_field(config: BaseModel, path: str) -> Any:
    """The value of `a.b.c`: a section as a dictionary, as the YAML writes it.

    Raises InputError for a field that is not there, with the nearest name.
    """
    at: Any = config.model_dump(mode="json", by_alias=True)
    section = ""
    for key in path.split("."):
        if not isinstance(at, dict):
            raise InputError(f"{path!r}: {section} is a value in this configuration, not a section")
        if key not in at:
            raise InputError(f"{path}: {_unknown(key, list(at))}")
        section, at = key, at[key]
    return at


def _validated(
    raw: dict[str, Any],
    schema: type[Schema],
    *,
    source: str,
    tree: yaml.Node | None = None,
    overrides: list[str] | tuple[str, ...] = (),
) -> Schema:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        overridden = {o.split("=", 1)[0] for o in overrides}
        sentences = []
        for problem in error.errors():
            keys = [str(k) for k in problem["loc"]]
            field = ".".join(keys)
            line = _line_of(tree, keys)
            made_up = problem["type"] == "extra_forbidden" and any(o.startswith(f"{field}.") for o in overridden)
            where = "command line" if field in overridden or made_up else f"{source}:{line}" if line else source
            sentences.append(f"{where}: {field}: {_explain(problem, keys, schema)}".replace(": : ", ": "))
        raise InputError("\n".join(dict.fromkeys(sentences))) from error


def _explain(problem: Any, keys: list[str], schema: type[BaseModel]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return _unknown(keys[-1], _names_in(keys[:-1], schema))
    if kind == "missing":
        return "missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return message if kind == "value_error" else f"{message}, not {given!r}"


def _unknown(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return "unknown key" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}")


def _names_in(keys: list[str], schema: type[BaseModel]) -> list[str]:
    """Valid keys of the section at `keys`."""
    section: Any = schema
    for key in keys:
        if key.isdigit():  # an item of the list that the key before named
            continue
        field = section.model_fields.get(key)
        inside = field.annotation if field else schema
        section = next((a for a in get_args(inside) if hasattr(a, "model_fields")), inside)
    fields = getattr(section, "model_fields", {})
    return [f.alias or name for name, f in fields.items()]


def _line_of(tree: yaml.Node | None, keys: list[str]) -> int | None:
    """The line (from 1) on which the key path stands, or on which its nearest existing parent does."""
    line, node = None, tree
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == key), None)
            if match is None:
                return line
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
    return line


def annotated_yaml() -> str:
    """Every field with its documentation as a comment and its default: a YAML to start from."""
    required = {"model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}}
    example = validate(
        {**required, "data": {"dataset": "14lap", "path": "data/14lap"}, "out": "runs/14lap-anit"}, source="example"
    )
    return "\n".join(_annotated(Config, example.model_dump(mode="json", by_alias=True), "")) + "\n"


def _annotated(section: type[BaseModel], values: dict[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key == "versions":
            continue
        for sentence in (field.description or "").splitlines():
            lines.append(f"{indent}# {sentence.strip()}")
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            lines += [f"{indent}{key}:", *_annotated(nested, values[key], indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(values[key])}")
    return lines
