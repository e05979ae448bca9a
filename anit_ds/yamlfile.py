"""YAML as people mean it: keys are text, a repeated key is refused with its line, and no file makes a reader hang.

Against YAML 1.1 as PyYAML has it: 1e-4 and 2e8 are numbers, 010 is ten, 12:30 and 2024-01-02 are text, and infinity and
NaN are no values. `yes`, `no`, `on` and `off` stay booleans where a value may be anything; keys, and values that
`text_under` names, are what is written.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anit_ds.errors import InputError, shown

_MOST_VALUES, _DEEPEST, _MOST_BYTES = 100_000, 60, 8 << 20
_CORE = "tag:yaml.org,2002:"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and the tree it was read from, whose nodes know their lines."""

    value: Any
    tree: yaml.Node | None


def read_yaml(path: Path, what: str, *, text_under: Collection[str] = ()) -> Document:
    """The YAML file at `path`, `what` being its name in a message.

    Raises InputError: it cannot be read, is not UTF-8, not YAML, repeats a key, holds what is no value.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: too large for {what} ({path.stat().st_size >> 20} MiB); is it a data file?")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read {what} ({error.strerror})") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: UTF-16 text; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {byte} of the line); save it as UTF-8") from error
    return parse_yaml(text, str(path), text_under=text_under)


def parse_yaml(text: str, source: str, *, text_under: Collection[str] = ()) -> Document:
    """The one document in `text`; under the keys of `text_under`, at the top, every value is the text that is written.

    Raises InputError that names `source` and the line.
    """
    try:
        tree = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark and "\n" in text else source
        problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "no reason given")
        quote = "; inside of { } a value with ${...} needs quotes" if mark and "${" in _line(text, mark.line) else ""
        raise InputError(f"{where}: not valid YAML ({problem}{quote})") from error
    except RecursionError as error:
        raise InputError(f"{source}: not valid YAML (nested too deeply)") from error
    return Document(None if tree is None else _Reading(source, text_under, "\n" in text).value(tree), tree)


def _line(text: str, number: int) -> str:
    lines = text.split("\n")
    return lines[number] if number < len(lines) else ""


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml`, and readers of YAML 1.1, read back to `value`."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes only; what a plain scalar is follows YAML 1.2, but for its booleans."""


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that either version of YAML would take for something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        odd_breaks = any(character in data for character in "\x85\u2028\u2029")  # PyYAML folds them outside of "
        return self.represent_scalar(f"{_CORE}str", data, style='"' if odd_breaks else None)


_Dumper.add_representer(str, _Dumper.represent_str)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


class _Reading:
    """From nodes to values, counting them: aliases within aliases multiply."""

    def __init__(self, source: str, text_under: Collection[str], has_lines: bool) -> None:
        self.source, self.text_under, self.has_lines = source, text_under, has_lines
        self.values = 0

    def value(self, node: yaml.Node, *, depth: int = 0, as_text: bool = False) -> Any:
        self.values += 1
        if self.values > _MOST_VALUES:
            raise self._refused(node, f"more than {_MOST_VALUES:,} values once its aliases are written out")
        if depth > _DEEPEST:
            raise self._refused(node, "nested too deeply, or an alias inside of what it stands for")
        if isinstance(node, yaml.MappingNode):
            self._known(node, "map")
            return self._mapping(node, depth, as_text)
        if isinstance(node, yaml.SequenceNode):
            self._known(node, "seq")
            return [self.value(item, depth=depth + 1, as_text=as_text) for item in node.value]
        return self._scalar(node, as_text)

    def _mapping(self, node: yaml.MappingNode, depth: int, as_text: bool) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, content in node.value:
            if key.tag == f"{_CORE}merge":
                merged = {**self._merged(content, depth, as_text), **merged}
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._refused(key, "a key is text, not a list or a section")
            name, line = self._text(key), key.start_mark.line + 1
            if name in own:
                raise self._refused(key, f"the key {shown(name)} is repeated; it stands on line {lines[name]} already")
            text = as_text or (depth == 0 and name in self.text_under)
            own[name], lines[name] = self.value(content, depth=depth + 1, as_text=text), line
        return {**merged, **own}

    def _merged(self, node: yaml.Node, depth: int, as_text: bool) -> dict[str, Any]:
        """What `<<` brings in: a section, or several of which the first ones win."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            value = self.value(part, depth=depth + 1, as_text=as_text)
            if not isinstance(value, dict):
                raise self._refused(part, "<< takes sections")
            merged = {**value, **merged}
        return merged

    def _scalar(self, node: yaml.Node, as_text: bool) -> Any:
        kind = self._known(node, "str", "null", "bool", "int", "float")
        text = self._text(node)
        if kind == "str" or (as_text and text):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        try:
            number = (
                int(text, _base(text))
                if kind == "int"
                else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            )
        except ValueError:
            raise self._refused(node, f"{shown(text)} is no number that can be read") from None
        if number != number or number in (float("inf"), float("-inf")):
            raise self._refused(node, f"{shown(text)} is no finite number")
        return number

    def _text(self, node: yaml.Node) -> str:
        text: str = node.value
        if found := _NO_TEXT.search(text):
            raise self._refused(node, f"{found[0]!r} in {shown(text)} is no text")
        return text

    def _known(self, node: yaml.Node, *kinds: str) -> str:
        kind = node.tag.removeprefix(_CORE)
        if kind in kinds:
            return kind
        if kind == "merge":
            return "str"
        raise self._refused(node, f"the tag {shown(node.tag)} says nothing here; leave it out")

    def _refused(self, node: yaml.Node, problem: str) -> InputError:
        line = f":{node.start_mark.line + 1}" if self.has_lines else ""
        return InputError(f"{self.source}{line}: {problem}")


def _base(text: str) -> int:
    return {"0x": 16, "0o": 8}.get(text[:2], 10)
