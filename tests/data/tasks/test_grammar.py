"""Valid answers about a text: every answer that can be written is valid at every step, and no step is a dead end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anit_ds.data.tasks import TASKS, Parsed
from anit_ds.data.tasks.answers import SetTask
from anit_ds.data.tasks.grammar import LabelGrammar, SpanGrammar
from anit_ds.data.tasks.multilabel import MULTILABEL

WORDS = {"PER": "person", "GRP": "group", "GOF": "group of; people", "x": "a: b"}
EXTRACTION = [task for task in TASKS.values() if isinstance(task, SetTask) and task is not MULTILABEL]
TEXTS = st.lists(
    st.sampled_from(["Ada", "Bo-Jo", "a;b", "c,d", "\\", "é", "日本", "x y", "'s", "Ada"]), min_size=1, max_size=7
)


@pytest.mark.parametrize("task", EXTRACTION, ids=lambda task: task.name)
@settings(max_examples=30)
@given(words=TEXTS, seed=st.integers(0, 2**32))
def test_what_can_be_written_is_valid_at_every_step(task: SetTask, words: list[str], seed: int) -> None:
    rng = random.Random(seed)
    text = " ".join(words)
    spans = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    items = list({(rng.choice(list(WORDS)), *rng.choices(spans, k=len(task.item_fields) - 1)) for _ in range(3)})
    answer, grammar = task.render(items, WORDS), SpanGrammar(task, text, WORDS)
    for end in range(len(answer) + 1):
        assert grammar.begins(answer[:end]) and grammar.begins(f" {answer[:end]}")
    assert grammar.is_whole(answer) and grammar.whole_part(answer + "; per") == answer


@pytest.mark.parametrize("task", EXTRACTION, ids=lambda task: task.name)
@settings(max_examples=30)
@given(words=TEXTS, seed=st.integers(0, 2**32))
def test_a_walk_that_is_valid_so_far_ends_in_an_answer_that_parses(task: SetTask, words: list[str], seed: int) -> None:
    rng, text = random.Random(seed), " ".join(words) + " " * (seed % 2)
    grammar, answer = SpanGrammar(task, text, WORDS), ""
    characters = sorted({*text, *"".join(WORDS.values()), *"None;:, \\s"})
    while not (grammar.is_whole(answer) and (len(answer) > 60 or rng.random() < 0.1)):
        following = [c for c in characters if grammar.begins(answer + c)]
        if not following and grammar.is_whole(answer):
            break
        if not following:
            whole = grammar.whole_part(answer)
            begun = answer.lstrip().removeprefix(whole).removeprefix("; ")
            (last,) = task.parse(begun, WORDS).items or [None]
            repeated = last in task.parse(whole, WORDS).items
            assert repeated or text.endswith(" "), "only a repeat leads nowhere, and it is left out"
            answer = whole
            break
        answer += rng.choice(following)
        if len(answer) > 400:
            answer = grammar.whole_part(answer)
    parsed = task.parse(answer, WORDS)
    assert parsed.malformed == 0 and all(span in text for item in parsed.items for span in item[1:])
    assert all(parsed.items.count(item) <= min(map(text.count, item[1:])) for item in parsed.items)


@pytest.mark.parametrize(
    "answer, why",
    [
        ("place: Bern", "no such label"), ("person: Ben", "not in the text"), ("person: erne", "inside a word"),
        ("person:Ada", "no blank"), ("person: Ada;group", "no blank"),
        ("Nobody", "neither None nor a label"), ("person: Ada\nx", "two lines"), ("None; person: Ada", "none and one"),
    ],
)  # fmt: skip
def test_what_is_not_valid(answer: str, why: str) -> None:
    grammar = SpanGrammar(TASKS["ner"], "Ada lives in Berne", WORDS)  # type: ignore[arg-type]
    assert not grammar.begins(answer) and not grammar.is_whole(answer)


def test_whole_parts() -> None:
    grammar = SpanGrammar(TASKS["ner"], "Ada lives in Berne", WORDS)  # type: ignore[arg-type]
    assert [grammar.whole_part(a) for a in ("", "None", "person: Ad", "person: Ada; group: lives; gr")] == [
        "None", "None", "None", "person: Ada; group: lives",
    ]  # fmt: skip
    assert grammar.is_whole("None") and TASKS["ner"].parse("None", WORDS) == Parsed(())
    assert not grammar.is_whole("person: Ada; person: Ada"), "it occurs once"
    assert not grammar.is_whole("person: Ada ; group: lives") and not grammar.begins("person: Ada ;"), "read without it"
    assert not grammar.is_whole("") and not grammar.is_whole("person: Ada;")


def test_each_set_of_labels_is_one_valid_answer_and_nothing_else_is() -> None:
    """Every answer that characters can be added up to, each step valid, without a dead end."""
    words = {"t": "toxic", "st": "toxic; severe", "N": "None of it", "x": "a: b"}
    grammar = LabelGrammar(MULTILABEL, words)
    characters = sorted({*"".join(words.values()), *"None;\\ \n"})
    found, open_ones = set(), [""]
    while open_ones:
        answer = open_ones.pop()
        following = [answer + c for c in characters if grammar.begins(answer + c)]
        assert following or grammar.is_whole(answer)
        found |= {answer} if grammar.is_whole(answer) else set()
        open_ones += [longer for longer in following if len(longer) < 60 and not longer.startswith(" ")]
    sets = [[(label,) for at, label in enumerate(words) if number >> at & 1] for number in range(2 ** len(words))]
    assert found == {MULTILABEL.render(items, words) for items in sets}
    assert grammar.whole_part("toxic; a: b; toxic") == "toxic; a: b" and grammar.whole_part("tox") == "None"
