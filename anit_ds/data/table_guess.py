"""What a file of one's own holds: which column is the text, which says the answer, and what labels occur.

`anit init` writes a configuration from it. A guess is only made where one column stands out; else the columns are named
and the user says which.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from anit_ds.config import Columns
from anit_ds.data.corpora.columns import row_of, yes_or_no
from anit_ds.data.corpora.names import NAMES
from anit_ds.data.corpora.reading import Faults, read_rows
from anit_ds.data.corpora.streams import is_hub_path, load, sound
from anit_ds.data.corpora.table import ENDINGS, records
from anit_ds.data.tasks import TASKS
from anit_ds.errors import InputError, shown

_LOOKED_AT = 20_000
_MOST_LABELS = 200
_TEXTS = ("text", "sentence", "content", "body", "message", "msg", "review", "document", "query", "input", "utterance")
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "output", "y", "stars")
_SEVERAL = ("labels", "tags", "topics", "categories", "classes", "emotions")
_SEPARATORS = ";|,"
_ENTITIES = ("entities", "spans", "ner", "label", "labels", "annotations")
_CHATS = ("conversations", "messages")


@dataclass(frozen=True)
class Beginning:
    """What was found: the task, the columns, the labels with their counts, the most frequent first, and how many rows
    were looked at, of which `broken` could not be read (the first reason in `why`)."""

    task: str
    columns: Columns
    labels: Counter[str]
    rows: int
    broken: int = 0
    why: str = ""
    names: Sequence[str] = field(default=())
    """What the file itself calls the labels 0, 1, ...; empty where it does not."""


def look_at(
    path: str, task: str | None, given: Mapping[str, str], labels: Sequence[str] = (), separator: str | None = None
) -> Beginning:
    """Look at the first 20,000 rows. `given` are columns that the user names (text, entities, items), `labels` those of
    the label, `separator` what stands between the labels of a cell.

    Raises InputError: no such file, no rows, columns that are not there or do not tell which is which.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"--task: no task is called {shown(task)}; there are {', '.join(TASKS)}")
    faults = Faults("skip")
    rows, named = _records(path, faults)
    read = list(islice(rows, _LOOKED_AT))
    objects = [record for _, record in read if isinstance(record, Mapping)]
    if not any(objects):
        raise InputError(f"{path}: holds no row with columns" + (f" ({faults.first[0]})" if faults.first else ""))
    found = _columns(path, objects, task, given, labels, separator)
    task = task or ("classification" if found.label else "ner")
    faults = Faults("skip", task)
    made = list(read_rows(read, row_of(found, task), Path(path), faults))
    if not made:
        raise InputError(f"{path}: no row can be read as {task}: {faults.first[0]}")
    counted = Counter(dict.fromkeys(found.label if isinstance(found.label, tuple) else (), 0))
    counted.update(item[0] for row in made for item in row.items)
    if not counted.total():
        raise InputError(f"{path}: no row has a label")
    if len(counted) > _MOST_LABELS:
        raise InputError(
            f"{path}: the column {found.label or found.items or found.entities} has {len(counted)} different labels in "
            f"{len(made)} rows, such as {shown(next(iter(counted)))}; is it the right one? --label COLUMN names another"
        )
    why = faults.first[0] if faults.first else ""
    names = named.get(str(found.label or found.items or found.entities), ())
    return Beginning(task, found, counted, len(made), faults.skipped, why, names)


def _records(path: str, faults: Faults) -> tuple[Iterator[tuple[int, object]], dict[str, Sequence[str]]]:
    """The records of a file, of a folder's training file, or of the hub; and what columns call the labels 0, 1, ..."""
    if is_hub_path(path):
        loaded = load(path)
        stream = next((loaded[name] for name in NAMES["train"] if name in loaded), None)
        if stream is None:
            raise InputError(f"{path}: has no train split, only {', '.join(loaded)}")
        features = {column: getattr(of, "feature", of) for column, of in (stream.features or {}).items()}
        named = {column: of.names for column, of in features.items() if getattr(of, "names", None)}
        return enumerate(sound(stream, path, "train"), start=1), named
    file = Path(path)
    if file.is_dir():
        known = (file / f"{name}{ending}" for ending in ENDINGS for name in NAMES["train"])
        file = next((path for path in known if path.is_file()), file / f"train{ENDINGS[0]}")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file")
    return records(file, faults), {}


def _columns(
    path: str,
    rows: Sequence[Mapping[str, Any]],
    task: str | None,
    given: Mapping[str, str],
    labels: Sequence[str],
    separator: str | None,
) -> Columns:
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    for what, name in (*given.items(), *(("label", name) for name in labels)):
        if name not in names:
            raise InputError(f"--{what}: {path} has no column {shown(name)}; there are {', '.join(names)}")
    if chat := next((name for name in _CHATS if name in names), None):
        raise InputError(
            f"{path}: {chat} holds whole conversations; write each as one row with a text and a label or items (see "
            "docs/data-formats.md)"
        )
    text = given.get("text") or _text_column(path, rows, names)
    others = [name for name in names if name != text]
    if task == "multilabel" and "items" not in given:
        return Columns(text=text, **_columns_of_labels(path, rows, others, labels, separator))
    if separator or len(labels) > 1:
        raise InputError("--separator, and --label more than once, are for --task multilabel")
    named = {what: column for what, column in (*given.items(), *(("label", name) for name in labels)) if what != "text"}
    answers = named or _answer_column(path, rows, others, task)
    if task is None and "label" in answers:
        _refuse_several(path, rows, answers["label"])
    return Columns(text=text, **answers)


def _refuse_several(path: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raises InputError where a column that is taken for one label a text has several: lists, or cells whose parts are
    labels of other texts."""
    cells = [row.get(name) for row in rows]
    words = [cell.strip() for cell in cells if isinstance(cell, str)]
    several = [str(cell) for cell in cells if isinstance(cell, list)] + [word for word in words if word.startswith("[")]
    alone = set(words)
    for mark in _SEPARATORS:
        split = [(word, [part.strip() for part in word.split(mark)]) for word in words if mark in word]
        several += [word for word, parts in split if all(part in alone for part in parts)]
    if len(several) > 0.05 * len(cells):
        raise InputError(
            f"{path}: {name} has several labels in a cell, such as {shown(several[0])}: --task multilabel; where that "
            "is one label, --task classification"
        )


def _text_column(path: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    if known := [name for usual in _TEXTS for name in names if name.lower() == usual]:
        return known[0]
    lengths = {
        name: sum(len(row[name]) for row in rows[:1000] if isinstance(row.get(name), str)) / len(rows[:1000])
        for name in names
    }
    longest, *rest = sorted(names, key=lambda name: -lengths[name])
    if lengths[longest] < 3 or (rest and lengths[rest[0]] > lengths[longest] / 2):
        raise InputError(f"{path}: which column is the text? --text COLUMN says it; there are {', '.join(names)}")
    return longest


def _answer_column(
    path: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], task: str | None
) -> dict[str, str]:
    """{what it is: the column} of the answer."""
    if task not in ("classification", None):
        if task == "ner" and (name := _offsets(rows, names)):
            return {"entities": name}
        if "items" in names:
            return {"items": "items"}
        raise InputError(
            f"{path}: which column has the answer? --{'entities' if task == 'ner' else 'items'} COLUMN says it; there "
            f"are {', '.join(names)}"
        )
    if task is None and (name := _offsets(rows, names)):
        return {"entities": name}
    known = [name for name in names if name.lower() in _LABELS or name.lower().startswith("is_")]
    choices = known or [name for name in names if _repeats(rows, name)]
    if len(choices) == 1 or "label" in choices:
        return {"label": "label" if "label" in choices else choices[0]}
    flags = sum(_mostly(yes_or_no(row.get(name)) is not None for row in rows) for name in names) > 1
    hint = ", or --task multilabel if each column of 0 and 1 is a label" if flags else ""
    raise InputError(f"{path}: which column is the label? --label COLUMN says it{hint}; there are {', '.join(names)}")


def _columns_of_labels(
    path: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], chosen: Sequence[str], separator: str | None
) -> dict[str, Any]:
    """Where several labels of a text are: columns of 0 and 1, or one column with lists or with text."""
    flags = [name for name in chosen or names if _mostly(yes_or_no(row.get(name)) is not None for row in rows)]
    if len(chosen) > 1 or len(flags) > 1 or (chosen and flags):
        return {"label": tuple(chosen or flags)}
    known = [name for name in names if name.lower() in (*_LABELS, *_SEVERAL)]
    found = chosen or known or [name for name in names if any(isinstance(row.get(name), list) for row in rows)]
    if len(found) == 1:
        return {"label": found[0], "separator": separator or _separator(path, rows, found[0])}
    if "items" in names:
        return {"items": "items"}
    raise InputError(
        f"{path}: which columns are the labels? --label COLUMN says it, once for a column with lists, once each for "
        f"columns of 0 and 1; there are {', '.join(names)}"
    )


def _mostly(holds: Iterable[bool]) -> bool:
    """In nine of ten rows: what the tenth says instead is then a fault of that row."""
    held = list(holds)
    return sum(held) >= 0.9 * len(held)


def _separator(path: str, rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """What stands between the labels in a column's cells of text; None where they hold JSON."""
    cells = [row[name].strip() for row in rows if isinstance(row.get(name), str) and row[name].strip()]
    if all(cell.startswith("[") for cell in cells):
        return None
    found = [separator for separator in _SEPARATORS if any(separator in cell for cell in cells)]
    if len(found) != 1:
        there = " and ".join(found) or f"none of {' '.join(_SEPARATORS)}"
        raise InputError(
            f"{path}: what stands between the labels of {name}, where there is {there}? --separator says it; with one "
            "label in each row it is --task classification"
        )
    return found[0]


def _repeats(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column's values are few and come again, as labels do."""
    values = [row[name] for row in rows if isinstance(row.get(name), str | int | bool)]
    return len(values) == len(rows) and len(set(values)) <= max(2, min(_MOST_LABELS, len(rows) // 3))


def _offsets(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The column that holds lists of entities with their places."""
    for name in names:
        if name.lower() not in _ENTITIES:
            continue
        for row in rows[:1000]:
            value = row.get(name)
            if isinstance(value, str):
                with suppress(ValueError, RecursionError):
                    value = json.loads(value)
            if isinstance(value, list) and value and isinstance(value[0], list | dict):
                return name
    return None
