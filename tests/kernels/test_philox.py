"""The generator against Random123's published vectors, and the order in which its words become uniforms."""

from __future__ import annotations

import pytest
import torch

from anit_kernels.philox import ROUNDS, philox_4x32, split_words, uniforms

ZERO, ONES = (0,) * 6, (0xFFFFFFFF,) * 6
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)

# The philox4x32 lines of kat_vectors in Random123 (D. E. Shaw Research): rounds, counter and key, words.
KNOWN_ANSWERS = [
    (7, ZERO, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, ONES, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, ZERO, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("rounds", "inputs", "words"), KNOWN_ANSWERS)
def test_published_vectors(rounds: int, inputs: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert philox_4x32(inputs[:4], inputs[4:], rounds) == words  # type: ignore[arg-type]


@pytest.mark.parametrize(("rounds", "inputs", "words"), KNOWN_ANSWERS)
def test_published_vectors_on_tensors(rounds: int, inputs: tuple[int, ...], words: tuple[int, ...]) -> None:
    counter = [torch.full((3,), word, dtype=torch.int64) for word in inputs[:4]]
    for result, word in zip(philox_4x32(counter, (inputs[4], inputs[5]), rounds), words, strict=True):
        assert result.tolist() == [word] * 3


@pytest.mark.parametrize("seed", [0, 42, 2**63 + 7, -1])
@pytest.mark.parametrize("sample_id", [0, -5, 2**62 + 3])
def test_uniforms_are_the_halves_of_the_words_in_order(seed: int, sample_id: int) -> None:
    step, count = 9, 21
    expected = []
    for call in range(3):
        for word in philox_4x32((call, step, *split_words(sample_id)), split_words(seed), ROUNDS):
            expected += [((word & 0xFFFF) - 32767.5) / 32768, ((word >> 16) - 32767.5) / 32768]
    assert uniforms(count, seed, step, sample_id).tolist() == expected[:count]


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    u = uniforms(1 << 20, seed=1, step=2, sample_id=3).double()
    n = len(u)
    assert abs(u.mean()) < 5 * (1 / 3 / n) ** 0.5
    assert abs(u.square().mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    for lag in (1, 2, 7, 8):
        assert abs((u[lag:] * u[:-lag]).mean()) < 5 / 3 / n**0.5
    assert u.abs().max() < 1
    histogram = torch.histc(u.float(), bins=256, min=-1, max=1)
    chi_square = ((histogram - n / 256) ** 2 / (n / 256)).sum()
    assert chi_square < 255 + 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"sample_id": 4}, {"sample_id": 3 + 2**32}])
def test_another_key_is_another_stream(other: dict[str, int]) -> None:
    key = {"seed": 1, "step": 2, "sample_id": 3}
    assert not torch.equal(uniforms(64, **key), uniforms(64, **(key | other)))
