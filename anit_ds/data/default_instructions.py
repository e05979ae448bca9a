"""The instructions that `anit init` writes: plain wordings for each task, to be improved by whoever knows the data, and
words for the labels that were found."""

from __future__ import annotations

from collections import Counter
from typing import Any

from anit_ds.data.table_guess import Beginning
from anit_ds.data.tasks.answers import fold

_NO, _YES = ("0", "0.0", "false", "no"), ("1", "1.0", "true", "yes")


def words_of_labels(found: Beginning) -> dict[str, str]:
    """What the model is to say for each label, in the order in which they are shown: what the file itself calls it; for
    0 and 1 of a column such as is_spam `not spam` and `spam`; else the label's own words, without underscores where
    that leaves it apart from all others."""
    words = _words_of_labels(found)
    said = Counter(map(fold, words.values()))
    return {label: word if said[fold(word)] == 1 else " ".join(label.split()) for label, word in words.items()}


def _words_of_labels(found: Beginning) -> dict[str, str]:
    if isinstance(found.columns.label, tuple):  # columns of 0 and 1, one that has no 1 so far among them
        return {label: _without_underscores(label) for label in found.columns.label}
    labels = sorted(found.labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else label))
    column = (found.columns.label or "").lower()
    if found.task == "classification" and set(labels) <= {*_NO, *_YES} and "is_" in column:
        what = column.partition("is_")[2].replace("_", " ")
        return {label: f"not {what}" if label in _NO else what for label in labels}
    names = {str(at): name for at, name in enumerate(found.names)}
    return {label: _without_underscores(names.get(label, label)) for label in labels}


def _without_underscores(label: str) -> str:
    return " ".join(label.replace("_", " ").split()) or label


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
    "multilabel": {
        "question": "Which of the options fit the text?",
        "format": 'Write each label that fits, in the options\' order, "; " between them. Answer None if none fits.',
        "concise": [
            "Name all labels that fit the text.",
            "Decide for each of the options whether it describes the text.",
            "Read the text and say which of the labels apply to it.",
            "Tag the text with every label that holds for it.",
        ],
        "opposite": ["Name the labels that do not fit the text.", "Say in which language the text is written."],
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
    """The fields of an instructions file for what was found."""
    said = _PROMPTS[found.task]
    fields = {"task": found.task, "question": said["question"], "format": said["format"]}
    fields |= {"labels": words_of_labels(found), "concise": said["concise"]}
    return fields | ({"opposite": {"concise": said["opposite"]}} if opposites else {})
