"""From a YAML file to a `Config`: overrides, and one sentence for whatever is wrong in it.

`load_config(path, overrides)` reads a file, applies dotted `key=value` overrides and returns a `Config`; `validated` is
for other schemas. What is unknown or ill-typed raises `InputError` with the file, the line, the field's path and the
nearest valid name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from anit_ds.config import Config
from anit_ds.errors import InputError, nearest, shown
from anit_ds.yamlfile import parse_yaml, read_yaml

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read the YAML at `path` (a run's folder means that run), apply `section.key=value` overrides, validate.

    Raises InputError: no such file, not YAML, an unknown key, a wrong type, a value out of range.
    """

    def stay(raw: dict[str, Any], file: Path) -> None:
        if file != Path(path):
            raw["out"] = str(path)  # the folder may have been moved since its config.yaml was written

    return load_yaml(path, overrides, Config, stay)


def load_yaml(
    path: str | Path,
    overrides: list[str] | tuple[str, ...],
    schema: type[Schema],
    expand: Callable[[dict[str, Any], Path], None] = lambda raw, path: None,
) -> Schema:
    """`load_config` for any schema. `expand` may complete what was read, before the overrides."""
    path = Path(path)
    try:
        path = path / "config.yaml" if path.is_dir() else path
    except OSError as error:  # a name that no file system takes
        raise InputError(f"{shown(str(path))}: cannot read the configuration ({error.strerror})") from error
    document = read_yaml(path, "the configuration")
    raw = document.value
    if not isinstance(raw, dict):
        wanted = " and ".join(f"{name}:" for name in list(schema.model_fields)[:2])
        raise InputError(f"{path}: expected sections such as {wanted}, found {type(raw).__name__}")
    expand(raw, path)
    overridden: dict[str, yaml.Node | None] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"{shown(override)}: an override is written key=value, such as train.lr=2e-4")
        given = parse_yaml(value, f"command line: {key}")
        set_field(raw, key, given.value)
        overridden[key] = given.tree
    return validated(raw, schema, source=str(path), tree=document.tree, overridden=overridden)


def validate(raw: dict[str, Any], *, source: str) -> Config:
    """`Config` from plain data; a problem becomes an InputError that names `source`."""
    return validated(raw, Config, source=source)


def set_field(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries, making the sections that are not there.

    Raises InputError where a part of the path is a value and not a section.
    """
    *parents, last = path.split(".")
    if not all((*parents, last)):
        raise InputError(f"{shown(path)}: a field is written section.key, such as train.lr")
    at = raw
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}
        if not isinstance(at[parent], dict):
            raise InputError(f"{shown(path)}: {parent} is a value in this configuration, not a section")
        at = at[parent]
    at[last] = value


def get_field(config: BaseModel, path: str) -> Any:
    """The value of `a.b.c`: a section as a dictionary, as the YAML writes it.

    Raises InputError for a field that is not there, with the nearest name.
    """
    at: Any = config.model_dump(mode="json", by_alias=True)
    section = ""
    for key in path.split("."):
        if not isinstance(at, dict):
            raise InputError(f"{shown(path)}: {section} is a value in this configuration, not a section")
        if key not in at:
            raise InputError(f"{path}: unknown key; {nearest(key, list(at))}")
        section, at = key, at[key]
    return at


def validated(
    raw: dict[str, Any],
    schema: type[Schema],
    *,
    source: str,
    tree: yaml.Node | None = None,
    overridden: Mapping[str, yaml.Node | None] = MappingProxyType({}),
) -> Schema:
    """`raw` as the schema has it; `overridden` maps a field of the command line to what was given there.

    Raises InputError: a sentence for each problem, with its line where `tree`, that of the file, has one.
    """
    try:
        try:
            return schema.model_validate(raw)
        except ValidationError as error:
            if not _take_text_as_written(raw, error, tree, overridden):
                raise
            return schema.model_validate(raw)
    except ValidationError as error:
        sentences = []
        for problem in error.errors():
            keys = [str(k) for k in problem["loc"]]
            field = ".".join(keys)
            line = _line_of(tree, keys)
            inside = any(o.startswith(f"{field}.") for o in overridden)
            made_up = problem["type"] == "extra_forbidden" and inside
            on_command_line = made_up or any(o == field or field.startswith(f"{o}.") for o in overridden)
            where = "command line" if on_command_line else f"{source}:{line}" if line else source
            if inside and not made_up:  # of a section, which both have a say in
                where += " with the command line"
            sentences.append(f"{where}: {field}: {_explain(problem, keys, schema)}".replace(": : ", ": "))
        raise InputError("\n".join(dict.fromkeys(sentences))) from error


def _take_text_as_written(
    raw: dict[str, Any], error: ValidationError, tree: yaml.Node | None, overridden: Mapping[str, yaml.Node | None]
) -> bool:
    """Put the text that the YAML has where text is wanted and `no`, 010 or 1e5 was read as something else."""
    found = False
    for problem in error.errors():
        keys = [str(k) for k in problem["loc"]]
        node = _written(tree, overridden, keys) if problem["type"] == "string_type" else None
        if isinstance(node, yaml.ScalarNode) and problem.get("input") is not None:
            at: Any = raw
            for key in keys[:-1]:
                at = at[int(key)] if isinstance(at, list) else at[key]
            at[int(keys[-1]) if isinstance(at, list) else keys[-1]] = node.value
            found = True
    return found


def _written(tree: yaml.Node | None, overridden: Mapping[str, yaml.Node | None], keys: list[str]) -> yaml.Node | None:
    """The node that says a field: on the command line, else in the file."""
    for length in range(len(keys), 0, -1):
        if (given := ".".join(keys[:length])) in overridden:
            return _node_at(overridden[given], keys[length:])
    return _node_at(tree, keys)


def _node_at(tree: yaml.Node | None, keys: list[str]) -> yaml.Node | None:
    node = tree
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            node = next((value for own, value in node.value if own.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
        else:
            return None
    return node


def _explain(problem: Any, keys: list[str], schema: type[BaseModel]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(keys[-1], _names_in(keys[:-1], schema))}"
    if kind == "missing":
        return "missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return message if kind == "value_error" else f"{message}, not {shown(given)}"


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


_ABOVE = """\
# A key after a # is at what the preset `ours` of `anit` fills in; another preset or method has its own value there.
"""


def annotated_yaml() -> str:
    """Every field with its documentation as a comment and its default: a YAML to start from."""
    required = {"model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}}
    example = validate(
        {**required, "data": {"dataset": "14lap", "path": "data/14lap"}, "out": "runs/14lap-anit"}, source="example"
    )
    # What the preset says is shown and not set: another preset or method must find it unsaid.
    return _ABOVE + annotated(Config, example.model_dump(mode="json", by_alias=True), commented=example.filled_in)


def annotated(schema: type[BaseModel], values: dict[str, Any], *, commented: frozenset[str] = frozenset()) -> str:
    """`values` as YAML, each field under what its schema says of it; the `commented` ones (section.key) as comments."""
    return "\n".join(_annotated(schema, values, "", commented)) + "\n"


def _annotated(section: type[BaseModel], values: dict[str, Any], indent: str, commented: frozenset[str]) -> list[str]:
    lines: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key == "versions":
            continue
        lines += [f"{indent}# {sentence.strip()}" for sentence in (field.description or "").splitlines()]
        value, kinds = values[key], (field.annotation, *get_args(field.annotation))
        nested = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if nested and isinstance(value, dict):
            lines += [f"{indent}{key}:", *_annotated(nested, value, indent + "  ", _inside(key, commented))]
        elif isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *(f"{indent}  {inner}: {_flow(value[inner])}" for inner in value)]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [f"{indent}{key}:", *(f"{indent}  - {_flow(item)}" for item in value)]
        else:
            lines.append(f"{indent}{'# ' if key in commented else ''}{key}: {json.dumps(value)}")
    return lines


def _inside(section: str, commented: frozenset[str]) -> frozenset[str]:
    """The names of `commented` that are a section's own, without it."""
    return frozenset(name.removeprefix(f"{section}.") for name in commented if name.startswith(f"{section}."))


def _flow(value: Any) -> str:
    """On one line, as people write YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()
