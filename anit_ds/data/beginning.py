"""What a file of one's own holds: which column is the text, which says the answer, and what labels occur.

`anit init` writes a configuration from it. A guess is only made where one column stands out; else the columns are named
and the user says which.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from anit_ds.config import Columns
from anit_ds.data.corpora.columns import row_of
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


def look_at(path: str, task: str | None, given: Mapping[str, str]) -> Beginning:
    """Look at the first 20,000 rows. `given` are columns that the user names (text, label, entities, items).

    Raises InputError: no such file, no rows, columns that are not there or do not tell which is which.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"--task: no task is called {shown(task)}; there are {', '.join(TASKS)}")
    faults = Faults("skip")
    rows, names = _records(path, faults)
    read = list(islice(rows, _LOOKED_AT))
    objects = [record for _, record in read if isinstance(record, Mapping)]
    if not objects:
        raise InputError(f"{path}: holds no row with columns" + (f" ({faults.first[0]})" if faults.first else ""))
    found = _columns(path, objects, task, dict(given))
    task = task or ("classification" if found.label else "ner")
    faults = Faults("skip", task)
    made = list(read_rows(read, row_of(found), Path(path), faults))
    if not made:
        raise InputError(f"{path}: no row can be read as {task}: {faults.first[0]}")
    labels = Counter(item[0] for row in made for item in row.items)
    if not labels:
        raise InputError(f"{path}: no row has a label")
    if len(labels) > _MOST_LABELS:
        raise InputError(
            f"{path}: the column {found.label or found.items or found.entities} has {len(labels)} different labels in "
            f"{len(made)} rows, such as {shown(next(iter(labels)))}; is it the right one? --label COLUMN names another"
        )
    why = faults.first[0] if faults.first else ""
    return Beginning(task, found, labels, len(made), faults.skipped, why, names)


def _records(path: str, faults: Faults) -> tuple[Iterator[tuple[int, object]], Sequence[str]]:
    """The records of a file, of a folder's training file, or of the hub; and what it calls the labels 0, 1, ..."""
    if is_hub_path(path):
        loaded = load(path)
        stream = next((loaded[name] for name in NAMES["train"] if name in loaded), None)
        if stream is None:
            raise InputError(f"{path}: has no train split, only {', '.join(loaded)}")
        classes = [getattr(feature, "names", None) for feature in (stream.features or {}).values()]
        return enumerate(sound(stream, path, "train"), start=1), next(filter(None, classes), ())
    file = Path(path)
    if file.is_dir():
        known = (file / f"{name}{ending}" for ending in ENDINGS for name in NAMES["train"])
        file = next((path for path in known if path.is_file()), file / f"train{ENDINGS[0]}")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file")
    return records(file, faults), ()


def _columns(path: str, rows: Sequence[Mapping[str, Any]], task: str | None, given: dict[str, str]) -> Columns:
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    for what, name in given.items():
        if name not in names:
            raise InputError(f"--{what}: {path} has no column {shown(name)}; there are {', '.join(names)}")
    if chat := next((name for name in _CHATS if name in names), None):
        raise InputError(
            f"{path}: {chat} holds whole conversations; write each as one row with a text and a label or items (see "
            "docs/data-formats.md)"
        )
    text = given.get("text") or _text_column(path, rows, names)
    others = [name for name in names if name != text]
    named = {what: column for what, column in given.items() if what != "text"}
    return Columns(text=text, **(named or _answer_column(path, rows, others, task)))


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
    raise InputError(f"{path}: which column is the label? --label COLUMN says it; there are {', '.join(names)}")


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


def words_of_labels(found: Beginning) -> dict[str, str]:
    """What the model is to say for each label, in the order in which they are shown: what the file itself calls it; for
    0 and 1 of a column such as is_spam `not spam` and `spam`; else the label's own words."""
    labels = sorted(found.labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else label))
    column = (found.columns.label or "").lower()
    if found.task == "classification" and set(labels) <= {"0", "1", "true", "false", "yes", "no"} and "is_" in column:
        what = column.partition("is_")[2].replace("_", " ")
        return {label: f"not {what}" if label in ("0", "false", "no") else what for label in labels}
    names = {str(at): name for at, name in enumerate(found.names)}
    return {label: names.get(label, label).replace("_", " ").strip() or label for label in labels}


_SPANS = (
    ' with the span copied from the text, in order of appearance, separated by "; ". Put a backslash before a ";" that '
    "belongs to a span. Answer None if there is none."
)
_PROMPTS: dict[str, dict[str, Any]] = {
    "classification": {
        "question": "Which of the options fits the text?",
        "format": "Answer with one label from the options and nothing else.",
        "concise": [
            "Choose the label that fits the text.",
            "Decide which of the options describes the text.",
            "Read the text and say to which of the classes it belongs.",
            "Classify the text by the labels given.",
        ],
        "opposite": ["Choose a label that does not fit the text.", "Say in which language the text is written."],
    },
    "ner": {
        "question": "Which entities does the text mention, and of which type is each?",
        "format": 'Write each entity as "type: span"' + _SPANS,
        "concise": [
            "Extract all entities of the given types from the text.",
            "List every entity that the text names, with its type.",
            "Find the entities in the text and say of which type each is.",
            "Mark each entity in the text with its type.",
        ],
        "opposite": ["List the words of the text that name nothing.", "Count the entities of each type."],
    },
    "relation": {
        "question": "Which relations does the text state, and between what?",
        "format": 'Write each relation as "relation: head, tail"' + _SPANS.replace('";" that', '";" or "," that'),
        "concise": [
            "Extract the relations that the text states.",
            "List each relation in the text with its head and its tail.",
            "Find what the text says to be related, and how.",
            "Name every relation of the given kinds that the text states.",
        ],
        "opposite": ["List the things in the text that are not related.", "Count the relations of each kind."],
    },
    "absa": {
        "question": "Which aspects does the text judge, with which words, and how?",
        "format": 'Write each as "sentiment: aspect, opinion"' + _SPANS.replace('";" that', '";" or "," that'),
        "concise": [
            "Extract each aspect with the opinion about it and the sentiment.",
            "List what the text judges, the words that judge it, and whether they are kind.",
            "Find the aspects, the opinions on them and their sentiment.",
            "Name every judged aspect, its opinion words and its sentiment.",
        ],
        "opposite": ["List the aspects that the text does not judge.", "Say who wrote the text."],
    },
}


def instructions_for(found: Beginning, *, opposites: bool) -> dict[str, Any]:
    """The fields of an instructions file for what was found, to be improved by whoever knows the data."""
    said = _PROMPTS[found.task]
    fields = {"task": found.task, "question": said["question"], "format": said["format"]}
    fields |= {"labels": words_of_labels(found), "concise": said["concise"]}
    return fields | ({"opposite": {"concise": said["opposite"]}} if opposites else {})
