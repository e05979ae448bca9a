"""`None` by its probability: the fitted threshold beside a search, and the grammar without it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anit_ds.data.tasks import TASKS, Parsed, score
from anit_ds.data.tasks.grammar import Grammar, grammar_for
from anit_ds.evaluation.none_threshold import chosen, fitted_threshold, nothing_report, thresholds_of

ITEMS = [("PER", "Ada"), ("PER", "Bo"), ("LOC", "Bern")]
items = st.lists(st.sampled_from(ITEMS), max_size=3).map(tuple)
somethings = st.builds(Parsed, items, st.integers(0, 1))
texts = st.lists(st.tuples(st.floats(0, 1) | st.none(), somethings, items), min_size=1, max_size=8)
WORDS = {"PER": "person", "LOC": "place", "X": "Norse"}


@given(texts)
def test_no_threshold_scores_better_than_the_fitted_one(drawn: list[tuple[float | None, Parsed, tuple]]):
    likely, said, gold = zip(*drawn, strict=True)
    finite = [p for p in likely if p]  # a threshold is above 0

    def at(threshold: float) -> float:
        answers = [s if p is None or p < threshold else Parsed(()) for p, s in zip(likely, said, strict=True)]
        return score(gold, answers).micro_f1

    found, best = fitted_threshold(likely, said, gold), max(at(threshold) for threshold in [*finite, 1.0])
    if found is None:
        assert best == 0
    else:
        assert 0 < found <= 1
        answers = [chosen(p, found, s) for p, s in zip(likely, said, strict=True)]
        assert nothing_report(answers, gold, found)["micro_f1"] == at(found) == pytest.approx(best)
        assert all(at(lower) < at(found) for lower in finite if lower < found)


def test_each_set_of_a_mixture_has_the_threshold_that_was_fitted_on_it():
    fitted, given, hopeless = ({"threshold": p, "fitted": f} for p, f in ((0.8, True), (0.5, False), (None, True)))
    nothings = {"a": fitted, "b": given, "c": hopeless, "d": None}
    sets = {"e": {}, **{name: {"nothing": nothing} for name, nothing in nothings.items()}}
    tried = {"threshold": 0.5, "fitted": False, "best": 0.9}
    assert thresholds_of({"dataset": "f", "nothing": tried}) == {"f": 0.9}
    assert thresholds_of({"datasets": sets}) == {"a": 0.8} == thresholds_of({"dataset": "a", "nothing": fitted})


def test_a_threshold_is_as_short_as_it_may_be():
    right, wrong = Parsed((ITEMS[0],)), Parsed((ITEMS[1],))
    assert fitted_threshold([0.1234567, 0.91], [right, wrong], [(ITEMS[0],), ()]) == 0.52
    assert fitted_threshold([0.99912, 0.99918], [right, wrong], [(ITEMS[0],), ()]) == 0.99915
    assert fitted_threshold([0.9], [right], [(ITEMS[0],)]) == 0.95
    # 2 of 2 + 2, then 2 x 2 of 4 + 2 + 2: as good, and `None` less often.
    both = [(ITEMS[0],), (), (ITEMS[1],)]
    assert fitted_threshold([0.1, 0.3, 0.5], [right, Parsed((ITEMS[2], ITEMS[2])), wrong], both) == 0.2
    assert fitted_threshold([0.5], [wrong], [(ITEMS[0],)]) is None, "nothing is right at any"
    assert fitted_threshold([0.1, 0.2], [Parsed(()), Parsed(())], [(), ()]) is None, "nothing is said, nothing is gold"
    assert fitted_threshold([None, 0.9], [right, wrong], [(ITEMS[0],), ()]) == 0.45, "the first is decided by none"
    assert chosen(None, 0.1, right) is right


def test_from_the_threshold_on_it_is_none():
    said = Parsed((ITEMS[0],))
    assert chosen(0.5, 0.5, said).items == () and chosen(0.49, 0.5, said) is said


@pytest.mark.parametrize("task", ["ner", "multilabel"])
def test_without_none_the_grammar_has_every_other_answer(task: str):
    grammar = grammar_for(TASKS[task], "Ada saw Bern and Nora", WORDS)
    assert isinstance(grammar, Grammar)
    something = grammar.without_none()
    for line in ("Norse: Ada", "person: Ada; place: Bern", "person; place", "Norse", "p", "No", " N", ""):
        assert something.begins(line) == grammar.begins(line) and something.is_whole(line) == grammar.is_whole(line)
    for line in ("None", "Non", " None"):
        assert grammar.begins(line) and not something.begins(line) and not something.is_whole(line)
    assert grammar.is_whole("None"), "the one that it was made of still has it"
