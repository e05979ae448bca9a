"""The shipped instructions, and what is said about a user's own that are wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

import anit_ds.data.instructions
from anit_ds.data.corpora import DATASETS
from anit_ds.data.instructions import load_instructions
from anit_ds.errors import InputError

SHIPPED = sorted(path.stem for path in Path(anit_ds.data.instructions.__file__).parent.glob("*.yaml"))

OWN = {
    "task": "classification",
    "question": "Is this mail spam?",
    "format": "Answer with one label.",
    "labels": {"0": "ham", "1": "spam"},
    "concise": ["Say whether the mail is spam."],
}


def own(folder: Path, **changes: object) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**OWN, **changes}.items() if value is not None}))
    return path


def test_every_data_set_has_instructions_of_its_task() -> None:
    for name, info in DATASETS.items():
        if info.instructions is not None:
            assert load_instructions(info.instructions).task == info.task, name


@pytest.mark.parametrize("name", SHIPPED)
def test_four_paraphrases_and_opposites_of_both_versions(name: str) -> None:
    instructions = load_instructions(name)
    for version in ("concise", "detailed"):
        texts, opposites = instructions.texts(version), instructions.opposites(version)
        assert len(texts) >= 4
        assert len(opposites) >= 3
        assert len({*texts, *opposites}) == len(texts) + len(opposites)
        assert all(text == " ".join(text.split()) and text.endswith(".") for text in (*texts, *opposites))
    shortest = min(len(text.split()) for text in instructions.detailed)
    assert max(len(text.split()) for text in instructions.concise) < shortest


def test_labels_a_model_can_say() -> None:
    words = load_instructions("nyt24").labels
    assert len(words) == 24
    assert words["/people/person/place_lived"] == "place lived"
    assert not any("/" in said or "_" in said for said in words.values())
    assert len(load_instructions("ontonotes5").labels) == 18


def test_too_many_labels_are_not_all_listed() -> None:
    instructions = load_instructions("webnlg")
    assert len(instructions.options.split(", ")) == 25
    assert instructions.options.startswith("country, ")


def test_a_samples_paraphrase_follows_from_seed_and_id() -> None:
    instructions = load_instructions("sst2")
    picked = [instructions.pick("detailed", 1, f"sst2/train/{i}") for i in range(400)]
    assert picked == [instructions.pick("detailed", 1, f"sst2/train/{i}") for i in range(400)]
    assert picked != [instructions.pick("detailed", 2, f"sst2/train/{i}") for i in range(400)]
    assert min(Counter(picked).values()) > 60
    assert {instructions.pick("detailed", 1, str(i), 1) for i in range(50)} == {instructions.first("detailed")}


def test_a_users_own_file_needs_one_version_only(tmp_path: Path) -> None:
    instructions = load_instructions(own(tmp_path))
    assert instructions.options == "ham, spam"
    assert instructions.first("concise") == "Say whether the mail is spam."
    with pytest.raises(InputError, match="no detailed instructions"):
        instructions.first("detailed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, r"own\.yaml: question: missing"),
        ({"task": "translation"}, r"own\.yaml:\d+: task: input should be '.*, not 'translation'"),
        ({"labels": {}}, r"own\.yaml:\d+: labels: "),
        ({"labels": {"0": "Spam", "1": "spam"}}, "'1' and '0' are both called 'spam'"),
        ({"labels": {"0": "None."}, "task": "multilabel"}, "'0' is called 'None.', which says that there is nothing"),
        ({"concise": ["two\nlines"]}, r"own\.yaml:\d+: concise\.0: "),
        ({"detailled": ["x"]}, r"own\.yaml:\d+: detailled: unknown key; did you mean detailed\?"),
    ],
)
def test_what_is_wrong_with_a_users_file_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_instructions(own(tmp_path, **changes))


def test_a_file_that_is_not_there_and_a_name_that_is_nearly_right(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: cannot read"):
        load_instructions(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="did you mean webnlg"):
        load_instructions("weblng")
