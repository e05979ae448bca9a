"""What a model is told to do: for each data set one YAML with its instructions, question, format and label words.

`load_instructions("sst2")` reads a shipped file, `load_instructions("mine.yaml")` a user's own. The
shipped ones have concise instructions (the goal only) and detailed ones (step-by-step guidance), at least four
paraphrases of each, and for the noise `opposite` instructions that ask for something confusingly else. A user's file
needs one instruction of the version that is used.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from anit_ds.configfile import validated
from anit_ds.data.examples import hash_of_id
from anit_ds.data.tasks.answers import fold, is_none
from anit_ds.errors import InputError, nearest, shown
from anit_ds.yamlfile import read_yaml

Version = Literal["concise", "detailed"]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\n]*$")]
"""Text on one line: a prompt has one field per line."""


class Opposites(BaseModel):
    """Instructions that ask for something else, for each version."""

    model_config = ConfigDict(extra="forbid")

    concise: list[Line] = Field(default_factory=list)
    detailed: list[Line] = Field(default_factory=list)


class Instructions(BaseModel):
    """The fixed parts of a data set's prompts (docs/method.md section 1). Every string is one line."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    task: Literal["classification", "multilabel", "ner", "relation", "absa"]
    """The task, which decides how an answer is written and parsed."""
    question: Line
    """The prompt's Question field."""
    format: Line
    """The prompt's Format field: how the answer must be written."""
    labels: dict[str, Line] = Field(min_length=1)
    """From a raw label to the words a model says for it, in the order in which the Option field shows them."""
    options_shown: int | None = Field(None, ge=1)
    """How many labels the Option field lists where there are too many for a prompt; all by default."""
    concise: list[Line] = Field(default_factory=list)
    """Instructions that name the goal only; paraphrases of each other."""
    detailed: list[Line] = Field(default_factory=list)
    """Instructions with step-by-step guidance; paraphrases of each other."""
    opposite: Opposites = Field(default_factory=Opposites)
    """Instructions that ask for something confusingly else: the noise `opposite` takes its text from here."""

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> Instructions:
        said: dict[str, str] = {}
        for raw, words in self.labels.items():
            if self.task != "classification" and is_none(words):
                raise ValueError(f"labels: {shown(raw)} is called {shown(words)}, which says that there is nothing")
            if fold(words) in said:
                raise ValueError(
                    f"labels: {shown(raw)} and {said[fold(words)]} are both called {shown(words)}, apart from case and "
                    "blanks; give them other words, or where they are one label make them one in the data"
                )
            said[fold(words)] = shown(raw)
        return self

    @cached_property
    def options(self) -> str:
        """The prompt's Option field: the labels' words, and that there are more where not all are shown."""
        words = list(self.labels.values())
        shown = ", ".join(words[: self.options_shown])
        hidden = self.options_shown is not None and self.options_shown < len(words)
        return f"{shown}, or another one named in the same way" if hidden else shown

    def first(self, version: Version) -> str:
        """The instruction that dev and test use."""
        return self.texts(version)[0]

    def pick(self, version: Version, seed: int, id: str, paraphrases: int | None = None) -> str:
        """A training sample's instruction: one of the first `paraphrases` (all by default), from (seed, id) alone."""
        texts = self.texts(version)[:paraphrases]
        drawn = hash_of_id(id, 8, seed=seed.to_bytes(8, "little"), purpose=b"paraphrase")
        return texts[int.from_bytes(drawn, "little") % len(texts)]

    def opposites(self, version: Version) -> list[str]:
        """Opposite instructions of this version; empty where the file gives none."""
        return self.opposite.concise if version == "concise" else self.opposite.detailed

    def texts(self, version: Version) -> list[str]:
        """All paraphrases of a version. Raises InputError when there is none."""
        texts = self.concise if version == "concise" else self.detailed
        if not texts:
            raise InputError(f"data.instructions: the instructions file has no {version} instructions")
        return texts


_FOLDER = Path(__file__).parent


def load_instructions(name_or_path: str | Path) -> Instructions:
    """The shipped instructions called `name`, or those in a YAML file.

    Raises InputError: no such name or file, not YAML, a missing or unknown field, two labels with the same words.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in _names():
            name = str(name_or_path)
            raise InputError(
                f"no instructions are called {shown(name)}; {nearest(name, _names())} (or give a .yaml of your own)"
            )
    # Labels, their words and the texts are what the file writes: `no`, `1.0` and 12:30 are as good as any.
    written = {"question", "format", "labels", "concise", "detailed", "opposite"}
    document = read_yaml(path, "the instructions", text_under=written)
    if not isinstance(document.value, dict):
        raise InputError(f"{path}: expected the fields {', '.join(Instructions.model_fields)}")
    return validated(document.value, Instructions, source=str(path), tree=document.tree)


def _names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))
