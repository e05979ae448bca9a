"""The six noises (docs/method.md section 2): each bends an instruction and is pure in (instruction, omega, seed).

Words are what white space separates, and the words of a noisy instruction are joined by single spaces; an
instruction that a noise leaves alone (omega 0, nothing to drop or to move) is returned as it is. What a noise takes
from outside, random words, running text or opposite instructions, comes in as `Sources`, so nothing is global.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from anit_ds.data.noise.vocabulary import english_vocabulary


@dataclass(frozen=True)
class Sources:
    """Where the noises take text from.

    `vocabulary`: random words (insertion, replacement); None means English dictionary words.
    `running_text`: other samples' texts (padding).
    `opposites`: instructions that ask for something else (opposite).
    """

    vocabulary: Sequence[str] | None = None
    running_text: Sequence[str] = ()
    opposites: Sequence[str] = ()

    @property
    def words(self) -> Sequence[str]:
        return english_vocabulary() if self.vocabulary is None else self.vocabulary


NoiseFunction = Callable[..., str]
"""`(instruction, omega, seed, *, sources=Sources(), text="")`; `text` is the sample's own context."""

_DEFAULT = Sources()


def words_touched(omega: float, count: int) -> int:
    """n = ceil(omega * count), where a product that only rounding lifts above a whole number is that number."""
    if not 0 <= omega <= 1:
        raise ValueError(f"omega must lie in [0, 1], not {omega}")
    return math.ceil(omega * count - 1e-9)


def truncation(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Drop n words at the front or at the rear; at least one word stays."""
    words = instruction.split()
    drop = min(words_touched(omega, len(words)), len(words) - 1)
    if drop < 1:
        return instruction
    return " ".join(words[drop:] if Random(seed).getrandbits(1) else words[:-drop])


def shuffle(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Move n words (two at least) to one another's places; the result differs whenever two words do.

    The chosen places are passed round in a random cycle, so each of them gets another place's word.
    """
    words = instruction.split()
    touched = words_touched(omega, len(words))
    if touched == 0 or len(set(words)) < 2:
        return instruction
    random = Random(seed)
    places = _places(min(max(touched, 2), len(words)), len(words), random)
    if len({words[place] for place in places}) < 2:
        places[-1] = random.choice([p for p, word in enumerate(words) if word != words[places[0]]])
    moved = [words[place] for place in places]
    for place, word in zip(places, moved[1:] + moved[:1], strict=True):
        words[place] = word
    return " ".join(words)


def _places(count: int, among: int, random: Random) -> list[int]:
    """`count` different places in random order; four times as fast as `random.sample` at these sizes."""
    places, uniform = list(range(among)), random.random
    for i in range(count):
        j = i + int(uniform() * (among - i))
        places[i], places[j] = places[j], places[i]
    return places[:count]


def insertion(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Put n random words at random places; the instruction's own words keep their order."""
    words = instruction.split()
    touched = words_touched(omega, len(words))
    if touched == 0:
        return instruction
    random = Random(seed)
    gaps = sorted(random.choices(range(len(words) + 1), k=touched), reverse=True)
    for gap, word in zip(gaps, random.choices(sources.words, k=touched), strict=True):
        words.insert(gap, word)
    return " ".join(words)


def replacement(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Put a different random word at exactly n places."""
    words = instruction.split()
    touched = words_touched(omega, len(words))
    if touched == 0:
        return instruction
    random = Random(seed)
    places = _places(touched, len(words), random)
    for place, drawn in zip(places, random.choices(sources.words, k=touched), strict=True):
        words[place] = drawn if drawn != words[place] else _other_word(drawn, sources.words, random)
    return " ".join(words)


def _other_word(word: str, vocabulary: Sequence[str], random: Random) -> str:
    others = [candidate for candidate in vocabulary if candidate != word]
    if not others:
        raise ValueError(f"replacement needs a vocabulary with a word other than {word!r}")
    return random.choice(others)


def padding(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Put n words of unrelated running text before or behind; the instruction stays in one piece.

    The words follow one another in a text of `sources.running_text` that is not this sample's own `text`, from a
    random start; where that text ends, the next one goes on. Raises ValueError when there is no other text.
    """
    words = instruction.split()
    touched = words_touched(omega, len(words))
    if touched == 0:
        return instruction
    random = Random(seed)
    foreign = _running_words(touched, sources.running_text, text, random)
    return " ".join([*foreign, *words] if random.getrandbits(1) else [*words, *foreign])


def _running_words(count: int, texts: Sequence[str], own: str, random: Random) -> list[str]:
    found: list[str] = []
    start = random.randrange(len(texts)) if texts else 0
    for step in range(len(texts)):
        other = texts[(start + step) % len(texts)]
        if other == own:
            continue
        words = other.split()
        begin = random.randrange(max(1, len(words) - count + 1)) if not found else 0
        found += words[begin : begin + count - len(found)]
        if len(found) == count:
            return found
    if not found:
        raise ValueError("padding needs the text of at least one other sample")
    return (found * math.ceil(count / len(found)))[:count]


def opposite(instruction: str, omega: float, seed: int, *, sources: Sources = _DEFAULT, text: str = "") -> str:
    """Ask for something confusingly else: one of `sources.opposites`. Omega has no effect.

    Raises ValueError when there is none that differs from the instruction.
    """
    others = [other for other in sources.opposites if other != instruction]
    if not others:
        raise ValueError("the noise `opposite` needs an opposite instruction, and there is none for this one")
    return Random(seed).choice(others)


NOISES: dict[str, NoiseFunction] = {
    noise.__name__: noise for noise in (truncation, shuffle, insertion, replacement, padding, opposite)
}
