"""Word distances and beta against plain definitions, and the degenerate case."""

from __future__ import annotations

import logging
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anit_ds.data.distortion import Distance, DistanceTally, measure, normaliser

SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)


def levenshtein(first: list[str], second: list[str]) -> int:
    """The textbook dynamic programme."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@given(noisy=SENTENCES, raw=SENTENCES)
def test_distance_is_the_textbook_one(noisy: str, raw: str) -> None:
    distance = measure(noisy, raw)
    assert distance.words == levenshtein(noisy.split(), raw.split())
    assert distance == measure(raw, noisy)._replace(raw_length=len(raw.split()))
    assert 0 <= distance.by_length <= 1


def tally(*distances: tuple[int, int, int]) -> DistanceTally:
    made = DistanceTally()
    for distance in distances:
        made.add(Distance(*distance))
    return made


def test_minmax_is_the_papers_formula() -> None:
    counted = tally((2, 10, 10), (4, 10, 10), (4, 10, 10), (8, 10, 10))
    by = normaliser(counted, "auto")
    assert by.by == "minmax"
    assert by.beta(counted) == pytest.approx((0 + 1 / 3 + 1 / 3 + 1) / 4)


def test_length_where_instructions_have_several_lengths() -> None:
    counted = tally((2, 10, 10), (5, 20, 20))
    assert normaliser(counted, "auto").by == "length"
    assert normaliser(counted, "auto").beta(counted) == pytest.approx((2 / 10 + 5 / 20) / 2)
    assert normaliser(counted, "minmax").beta(counted) == pytest.approx(0.5)


@pytest.mark.parametrize("normalise", ["auto", "minmax"])
def test_constant_distance_falls_back_to_length_and_says_so_once(
    normalise: str, caplog: pytest.LogCaptureFixture
) -> None:
    counted = tally(*[(2, 10, 10)] * 5)
    with caplog.at_level(logging.WARNING):
        by = normaliser(counted, normalise)  # type: ignore[arg-type]
    assert by.by == "length"
    assert by.beta(counted) == pytest.approx(0.2)
    assert len(caplog.records) == 1
    assert "0/0" in caplog.text


def test_no_noisy_sample_gives_zero() -> None:
    assert normaliser(tally(), "minmax").beta(tally()) == 0.0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(30, 40), st.integers(1, 3)), min_size=1))
def test_beta_lies_in_the_unit_interval_and_tallies_can_be_merged(distances: list[tuple[int, int, int]]) -> None:
    whole, first, second = tally(*distances), tally(*distances[::2]), tally(*distances[1::2])
    first.merge(second)
    assert first == whole
    for normalise in ("auto", "minmax", "length"):
        assert 0 <= normaliser(whole, normalise).beta(whole) <= 1  # type: ignore[arg-type]


def test_twenty_times_faster_than_plain_python() -> None:
    """Instructions of 60 words, 12 of them replaced: what a detailed instruction looks like."""
    rng = random.Random(0)
    raw = [f"w{rng.randrange(1000)}" for _ in range(60)]
    noisy = [f"x{i}" if i % 5 == 0 else word for i, word in enumerate(raw)]
    raw_text, noisy_text = " ".join(raw), " ".join(noisy)

    def seconds(function, *arguments, repeats: int) -> float:
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(repeats):
                function(*arguments)
            best = min(best, (time.perf_counter() - start) / repeats)
        return best

    assert seconds(levenshtein, noisy, raw, repeats=3) > 20 * seconds(measure, noisy_text, raw_text, repeats=200)
