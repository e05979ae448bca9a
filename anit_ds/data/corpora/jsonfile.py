"""The objects of a JSON file: in one array, or on lines, one on each or several with commas between them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from anit_ds.data.corpora.reading import Faults, numbered_lines, open_binary
from anit_ds.errors import InputError
from anit_ds.files import json_problem

_BLANKS = " \t\r\n"
_UTF8_BOM = b"\xef\xbb\xbf"
_UNDECODED = re.compile("[\udc80-\udcff]")


def json_objects(path: Path, faults: Faults) -> Iterator[tuple[int, object]]:
    """(line on which it begins, value) of each object.

    Raises InputError for an array that is not whole: what follows a syntax error in it cannot be read.
    """
    with open_binary(path) as file:
        is_array = file.read(1 << 16).removeprefix(_UTF8_BOM).lstrip()[:1] == b"["
    yield from _in_array(path, faults) if is_array else _in_lines(path, faults)


def _in_lines(path: Path, faults: Faults) -> Iterator[tuple[int, object]]:
    """(line, value) of objects on lines, one on each or several with commas between them."""
    decoder = json.JSONDecoder()
    for number, line in numbered_lines(path, faults):
        at = _after_blanks(line, 0, _BLANKS + ",")
        while at < len(line):
            try:
                value, end = decoder.raw_decode(line, at)
            except (ValueError, RecursionError) as error:
                faults.report(path, number, f"not valid JSON ({json_problem(error)})")
                break
            yield number, value
            at = _after_blanks(line, end, _BLANKS + ",")


def _in_array(path: Path, faults: Faults) -> Iterator[tuple[int, object]]:
    """(line on which it begins, value) of each element of the file's array."""
    with open_binary(path) as file:
        # A byte that is no UTF-8 stays in its place, so that only its own object is broken.
        text = file.read().removeprefix(_UTF8_BOM).decode("utf-8", errors="surrogateescape")
    decoder, line, counted = json.JSONDecoder(), 1, 0

    def refuse(at: int, problem: str) -> InputError:
        return InputError(f"{path}:{text.count(chr(10), 0, at) + 1}: {problem}, so the array cannot be read")

    at = _after_blanks(text, _after_blanks(text, 0) + 1)
    while text[at : at + 1] != "]":
        if at == len(text):
            raise refuse(at, "the file ends before its ]")
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise refuse(getattr(error, "pos", at), f"not valid JSON ({json_problem(error)})") from error
        if undecoded := _UNDECODED.search(text, at, end):
            _report_byte(path, text, undecoded.start(), faults)
        else:
            yield line, value
        at = _after_blanks(text, end)
        if text[at : at + 1] == ",":
            at = _after_blanks(text, at + 1)
        elif at < len(text) and text[at] != "]":
            raise refuse(at, "no comma between two objects")
    if text[at + 1 :].strip(_BLANKS):
        raise refuse(at, "something follows its ]")


def _report_byte(path: Path, text: str, at: int, faults: Faults) -> None:
    line = text[text.rfind("\n", 0, at) + 1 : at].encode("utf-8", "surrogateescape")
    faults.report(path, text.count("\n", 0, at) + 1, f"not UTF-8 text (byte {len(line) + 1} of the line)")


def _after_blanks(text: str, position: int, blanks: str = _BLANKS) -> int:
    while position < len(text) and text[position] in blanks:
        position += 1
    return position
