"""Rendering and parsing of answers: inverse on every gold set, and total on whatever a model says."""

from __future__ import annotations

import time

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matrix import rows

from anit_ds.data.corpora import dataset_info, load_corpus
from anit_ds.data.instructions import load_instructions
from anit_ds.data.tasks import TASKS, Parsed
from anit_ds.data.tasks.answers import fold
from anit_ds.errors import InputError

WORDS = {"/people/person/place_lived": "place lived", "POS": "positive", "a:b": "odd: label"}
EXTRACTION = [name for name, task in TASKS.items() if len(task.item_fields) > 1]
AWKWARD = "\\;:,\"' \n\r\tN\u2028\u00a0é😀"
SPANS = st.text(min_size=1) | st.text(AWKWARD, min_size=1)
ANSWERS = st.text() | st.text("positve lacd;:,\\\n ", max_size=80) | st.from_regex(r"(positive: a[,;:\\]? ?){0,5}")

# A byte for a piece: hypothesis draws bytes ten times as fast as text, and most of these come near to an answer.
PIECES = [
    *WORDS.values(),
    *"\\\\\\;;;:::,,, \n\r.",
    "; ",
    ": ",
    ", ",
    "None",
    "NONE",
    "positive: a, b",
    "\\;",
    "\u2028",
    "\ud800",
]
PIECES += [chr(code) for code in range(0, 0x3000, 0x3000 // (256 - len(PIECES)))][: 256 - len(PIECES)]
PIECED_TOGETHER = st.binary(max_size=60).map(lambda drawn: "".join([PIECES[byte] for byte in drawn]))


def items_of(task: str) -> st.SearchStrategy[list[tuple[str, ...]]]:
    fields = len(TASKS[task].item_fields) - 1
    return st.lists(st.tuples(st.sampled_from(list(WORDS)), *[SPANS] * fields))


@pytest.mark.parametrize("task", EXTRACTION)
@given(data=st.data())
def test_any_items_survive_rendering_and_parsing(task: str, data: st.DataObject) -> None:
    items = data.draw(items_of(task))
    answer = TASKS[task].render(items, WORDS)
    assert "\n" not in answer and answer == answer.strip()  # what surrounds an answer is lost in decoding
    assert TASKS[task].parse(answer, WORDS) == Parsed(tuple(items))


LABEL_WORDS = st.lists(
    (st.text(AWKWARD.replace("\n", ""), min_size=1) | st.text(min_size=1)).map(lambda words: words.strip(" \n.")),
    unique_by=fold,
    min_size=1,
    max_size=6,
).filter(lambda all_words: {"", "none"}.isdisjoint(map(fold, all_words)))


@given(said=LABEL_WORDS, data=st.data())
def test_any_set_of_labels_has_one_answer(said: list[str], data: st.DataObject) -> None:
    words = {f"raw {place}": one for place, one in enumerate(said)}
    labels = data.draw(st.lists(st.sampled_from(list(words)), unique=True))
    task, items = TASKS["multilabel"], [(label,) for label in labels]
    answer = task.render(items, words)
    assert "\n" not in answer and answer == answer.strip()
    assert task.parse(answer, words) == Parsed(tuple(item for item in ((raw,) for raw in words) if item in items))
    assert task.render(items[::-1], words) == answer, "in whatever order the data has them"


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("None", Parsed(())),
        ("", Parsed((), malformed=1)),
        (" POSITIVE;place  lived.\nand so on", Parsed((("POS",), ("/people/person/place_lived",)))),
        ("positive; positive; odd: label", Parsed((("POS",), ("a:b",)))),
        ("positive; rude; None;", Parsed((("POS",),), malformed=2)),
        ("positive, place lived", Parsed((), malformed=1)),
        ("positive: a", Parsed((), malformed=1)),
    ],
)
def test_what_an_answer_with_labels_means(answer: str, parsed: Parsed) -> None:
    assert TASKS["multilabel"].parse(answer, WORDS) == parsed


DATASETS = ["wnut17", "scierc", "webnlg", "sst2", "agnews", "14lap", "14res"]


@pytest.mark.parametrize("dataset", rows(DATASETS, quick=[name for name in DATASETS if name != "agnews"]))
def test_every_gold_answer_of_real_data_survives(dataset: str, shared_data) -> None:
    corpus = load_corpus(dataset, shared_data / dataset)
    instructions = load_instructions(dataset_info(dataset).instructions)
    task = TASKS[instructions.task]
    for example in (*corpus.train, *corpus.dev, *corpus.test):
        answer = task.render(example.items, instructions.labels)
        assert task.parse(answer, instructions.labels) == Parsed(example.items), example.id


@pytest.mark.parametrize("span", [" a", "a ", "a\\ ", "\u00a0", " ", "\t;\t", "a\u2028", "C:\\users", "\\s"])
def test_blanks_at_the_ends_of_a_span_survive(span: str) -> None:
    answer = TASKS["ner"].render([("POS", span)], WORDS)
    assert TASKS["ner"].parse(answer.strip(), WORDS) == Parsed((("POS", span),))
    assert TASKS["ner"].parse(f"positive: \\ {'a'}\\ ", WORDS) == Parsed((("POS", " a "),))  # as once written


def test_spans_keep_what_needs_no_escape() -> None:
    answer = TASKS["ner"].render([("POS", "5:30, sharp"), ("POS", "AT&T; Inc.")], WORDS)
    assert answer == "positive: 5:30, sharp; positive: AT&T\\; Inc."


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("None", Parsed(())),
        (" none.\nInstruction: ...", Parsed(())),
        ("", Parsed((), malformed=1)),
        ("positive: screen, great", Parsed((("POS", "screen", "great"),))),
        ("POSITIVE : screen ,great;", Parsed((("POS", "screen", "great"),))),
        ("positive: screen", Parsed((), malformed=1)),
        ("positive: a, b, c; bad: a, b; positive: a, b", Parsed((("POS", "a", "b"),), malformed=2)),
        ("positive: a, b; None", Parsed((("POS", "a", "b"),), malformed=1)),
        ("positive: , b; positive: a,", Parsed((), malformed=2)),
        ("positive: a, b\npositive: c, d", Parsed((("POS", "a", "b"),))),
        ("positive: a, b; positive: a, b", Parsed((("POS", "a", "b"), ("POS", "a", "b")))),
    ],
)
def test_what_a_triplet_answer_means(answer: str, parsed: Parsed) -> None:
    assert TASKS["absa"].parse(answer, WORDS) == parsed


@pytest.mark.parametrize("answer", ["positive", " Positive.\nand so on", "POSITIVE"])
def test_a_label_is_found_whatever_its_case(answer: str) -> None:
    assert TASKS["classification"].parse(answer, WORDS) == Parsed((("POS",),))


@pytest.mark.parametrize("answer", ["", "positive negative", "the sentiment is positive", "None"])
def test_what_is_no_label_is_malformed(answer: str) -> None:
    assert TASKS["classification"].parse(answer, WORDS) == Parsed((), malformed=1)


@pytest.mark.parametrize("task", TASKS)
def test_a_label_without_words_is_named(task: str) -> None:
    item = ("nowhere", *["x"] * (len(TASKS[task].item_fields) - 1))
    with pytest.raises(InputError, match="'nowhere' has no words"):
        TASKS[task].render([item], WORDS)


def _parses(task: str, answer: str) -> None:
    parsed = TASKS[task].parse(answer, WORDS)
    assert all(item[0] in WORDS and len(item) == len(TASKS[task].item_fields) for item in parsed.items)
    assert parsed.malformed >= 0


@pytest.mark.parametrize("task", TASKS)
@given(answer=ANSWERS)
def test_parsing_never_raises(task: str, answer: str) -> None:
    _parses(task, answer)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=1_000, deadline=None, database=None, phases=[Phase.generate])
@given(answer=PIECED_TOGETHER)
def test_parsing_never_raises_on_many_inputs(task: str, answer: str) -> None:
    _parses(task, answer)


@pytest.mark.parametrize("task", rows(TASKS, quick=["classification", "multilabel", "absa"]))
@pytest.mark.parametrize("piece", ["\\", ";", "\\;", ": , ", "positive: a, b; ", " ", "\\ ", "a"])
def test_parsing_time_is_linear(task: str, piece: str) -> None:
    """A quadratic parser would need minutes for half a million characters."""
    answer = "positive: " + piece * (500_000 // len(piece))
    start = time.process_time()
    _parses(task, answer)
    assert time.process_time() - start < 5
