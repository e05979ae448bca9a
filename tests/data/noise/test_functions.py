"""Every line of the table of noises, over arbitrary Unicode instructions."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anit_ds.data.noise import NOISES, Sources
from anit_ds.data.noise.functions import words_touched
from anit_ds.data.noise.vocabulary import english_vocabulary

TEXTS = ("one two three four five", "six seven", "eight nine ten eleven twelve thirteen")
SOURCES = Sources(running_text=TEXTS, opposites=("ask for something else", "do the contrary"))
OMEGAS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]) | st.floats(0, 1)
SEEDS = st.integers(0, 2**64 - 1)
# Words from a small alphabet, so that repeats occur, and any text at all.
WORDS = st.sampled_from(["a", "b", "c", "sentiment", "of", "the"])
INSTRUCTIONS = st.lists(WORDS, min_size=1).map(" ".join) | st.text()


def touched(omega: float, words: int) -> int:
    """ceil(omega * words) with omega as the decimal number that was written."""
    return math.ceil(Fraction(repr(omega)) * words)


def is_subsequence(inner: list[str], outer: list[str]) -> bool:
    rest = iter(outer)
    return all(word in rest for word in inner)


def contains(inner: list[str], outer: list[str]) -> bool:
    return any(outer[i : i + len(inner)] == inner for i in range(len(outer) - len(inner) + 1))


@pytest.mark.parametrize("omega", [0.1, 0.2, 0.3, 0.55, 0.7, 1.0])
def test_rounding_never_adds_a_word(omega: float) -> None:
    assert [words_touched(omega, n) for n in range(1, 200)] == [touched(omega, n) for n in range(1, 200)]


@pytest.mark.parametrize("kind", NOISES)
@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS)
def test_pure_and_the_global_generator_untouched(kind: str, instruction: str, omega: float, seed: int) -> None:
    before = random.getstate()
    first = NOISES[kind](instruction, omega, seed, sources=SOURCES, text=TEXTS[0])
    random.seed(0)
    assert NOISES[kind](instruction, omega, seed, sources=SOURCES, text=TEXTS[0]) == first
    random.setstate(before)


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind != "opposite"])
@given(instruction=INSTRUCTIONS, seed=SEEDS)
def test_omega_zero_changes_nothing(kind: str, instruction: str, seed: int) -> None:
    assert NOISES[kind](instruction, 0.0, seed, sources=SOURCES) == instruction


@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS)
def test_truncation_keeps_a_contiguous_rest(instruction: str, omega: float, seed: int) -> None:
    words = instruction.split()
    rest = NOISES["truncation"](instruction, omega, seed).split()
    assert len(rest) == max(min(1, len(words)), len(words) - words_touched(omega, len(words)))
    assert rest in (words[: len(rest)], words[len(words) - len(rest) :])


@given(instruction=INSTRUCTIONS, omega=OMEGAS.filter(lambda omega: omega > 1e-6), seed=SEEDS)
def test_shuffle_keeps_the_words_and_differs_when_it_can(instruction: str, omega: float, seed: int) -> None:
    words = instruction.split()
    shuffled = NOISES["shuffle"](instruction, omega, seed).split()
    assert Counter(shuffled) == Counter(words)
    assert (shuffled != words) == (len(set(words)) > 1)
    assert sum(a != b for a, b in zip(words, shuffled, strict=True)) <= max(2, words_touched(omega, len(words)))


def test_shuffle_moves_exactly_n_of_different_words() -> None:
    words = [f"w{i}" for i in range(50)]
    for seed in range(100):
        shuffled = NOISES["shuffle"](" ".join(words), 0.2, seed).split()
        assert sum(a != b for a, b in zip(words, shuffled, strict=True)) == 10


@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS)
def test_insertion_keeps_the_original_as_a_subsequence(instruction: str, omega: float, seed: int) -> None:
    words = instruction.split()
    longer = NOISES["insertion"](instruction, omega, seed).split()
    assert len(longer) == len(words) + words_touched(omega, len(words))
    assert is_subsequence(words, longer)


@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS)
def test_replacement_changes_exactly_n_places(instruction: str, omega: float, seed: int) -> None:
    words = instruction.split()
    replaced = NOISES["replacement"](instruction, omega, seed, sources=Sources(vocabulary=("a", "b"))).split()
    assert len(replaced) == len(words)
    assert sum(a != b for a, b in zip(words, replaced, strict=True)) == words_touched(omega, len(words))


@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS, own=st.sampled_from(TEXTS))
def test_padding_surrounds_the_original_with_other_text(instruction: str, omega: float, seed: int, own: str) -> None:
    words = instruction.split()
    padded = NOISES["padding"](instruction, omega, seed, sources=SOURCES, text=own).split()
    extra = words_touched(omega, len(words))
    assert len(padded) == len(words) + extra
    assert padded[: len(words)] == words or padded[extra:] == words
    if words and not set(words) & set(" ".join(TEXTS).split()):
        foreign = padded[len(words) :] if padded[: len(words)] == words else padded[:extra]
        assert not set(foreign) & set(own.split())


def test_padding_is_running_text() -> None:
    padded = NOISES["padding"]("a b c d e f g h i j", 0.3, 5, sources=SOURCES, text=TEXTS[1]).split()
    foreign = [word for word in padded if len(word) > 1]
    assert len(foreign) == 3
    assert any(contains(foreign, text.split()) for text in (TEXTS[0], TEXTS[2]))


@given(instruction=INSTRUCTIONS, omega=OMEGAS, seed=SEEDS)
def test_opposite_comes_from_the_table_whatever_omega(instruction: str, omega: float, seed: int) -> None:
    other = NOISES["opposite"](instruction, omega, seed, sources=SOURCES)
    assert other in SOURCES.opposites
    assert other == NOISES["opposite"](instruction, 0.0, seed, sources=SOURCES)


@pytest.mark.parametrize(
    ("kind", "sources"),
    [
        ("padding", Sources()),
        ("padding", Sources(running_text=("own text",))),
        ("opposite", Sources()),
        ("opposite", Sources(opposites=("the only one",))),
        ("replacement", Sources(vocabulary=("the",))),
    ],
)
def test_a_noise_without_its_source_says_so(kind: str, sources: Sources) -> None:
    instruction = "the only one" if kind == "opposite" else "the the the"
    with pytest.raises(ValueError, match=f"{kind}.* needs"):
        NOISES[kind](instruction, 1.0, 0, sources=sources, text="own text")


@pytest.mark.parametrize("omega", [-0.1, 1.7, float("nan")])
def test_omega_outside_its_range_is_refused(omega: float) -> None:
    with pytest.raises(ValueError, match="omega must lie in"):
        NOISES["truncation"]("one two", omega, 0)


def test_both_sides_and_all_opposites_occur() -> None:
    words = [f"w{i}" for i in range(10)]
    truncated = {NOISES["truncation"](" ".join(words), 0.2, seed) for seed in range(50)}
    assert truncated == {" ".join(words[2:]), " ".join(words[:-2])}
    assert {NOISES["opposite"]("x", 0.2, seed, sources=SOURCES) for seed in range(50)} == set(SOURCES.opposites)


def test_the_vocabulary_is_a_real_english_word_list() -> None:
    words = english_vocabulary()
    assert len(words) > 20_000
    assert list(words) == sorted(set(words))
    assert {"house", "water", "sentence", "quickly"} <= set(words)
    assert all(word.isalpha() and word.islower() for word in words)
