"""The padding-free layout, offsets beyond 32 bits, and the generator as the kernels compute it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import anit_kernels
from anit_kernels import cells, nrm_triton
from anit_kernels.philox import philox_4x32

KEYS: dict[str, Any] = {"seed": 5, "step": 6, "eps": 1.0}
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.fixture(params=["one-launch", "two-launches", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIT_KERNEL", "reference" if request.param == "reference" else "triton")
    monkeypatch.setattr(nrm_triton, "ONE_LAUNCH_ELEMENTS", 1 << 30 if request.param == "one-launch" else 0)
    monkeypatch.setattr(nrm_triton, "CHUNK_ELEMENTS", 512)


@pytest.mark.parametrize(
    ("ball", "width", "told"), [("frobenius", 64, True), ("frobenius", 6, False), ("linf", 64, False)]
)
def test_padded_and_packed_samples_get_the_same_delta(
    ball: anit_kernels.Ball, width: int, told: bool, implementation: None
) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([7, 0, 19, 1])
    longest, total = 19, int(lengths.sum())
    attended = torch.arange(longest) >= longest - lengths[:, None]
    mask = attended & (torch.rand(attended.shape) < 0.8)
    e, grad = torch.randn(4, longest, width), torch.randn(4, longest, width)
    samples = KEYS | {"sample_ids": torch.arange(4) - 2, "beta": torch.full((4,), 0.3)}
    x0 = anit_kernels.nrm_init(e, mask, attended, **samples)
    x1, stats = anit_kernels.nrm_step(grad, e, mask, attended, **samples, alpha=0.7, ball=ball)

    packing: dict[str, Any] = {"cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()}
    if told:
        packing["max_seqlen"] = longest
    packed = (mask[attended], torch.ones(total, dtype=torch.bool))
    y0 = anit_kernels.nrm_init(e[attended], *packed, **samples, **packing)
    y1, packed_stats = anit_kernels.nrm_step(
        grad[attended], e[attended], *packed, **samples, alpha=0.7, ball=ball, **packing
    )
    assert torch.equal(x0[attended], y0)
    torch.testing.assert_close(x1[attended], y1, rtol=0, atol=1e-6)
    torch.testing.assert_close(stats.delta1_norm, packed_stats.delta1_norm, rtol=2e-6, atol=0)
    torch.testing.assert_close(stats.delta_dot_grad, packed_stats.delta_dot_grad, rtol=1e-5, atol=1e-5)


def test_numbers_of_samples_may_be_views(implementation: None) -> None:
    """One beta for all samples is one number in memory; others may be every second of some."""
    torch.manual_seed(0)
    e, grad, mask = torch.randn(4, 5, 16), torch.randn(4, 5, 16), torch.ones(4, 5, dtype=torch.bool)
    views = {
        "sample_ids": torch.arange(8)[::2], "beta": torch.tensor(0.3).expand(4), "eps": torch.rand(8)[::2] + 0.5
    }  # fmt: skip
    found = []
    for given in (views, {name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()}):
        samples = KEYS | given
        x1, _ = anit_kernels.nrm_step(grad, e, mask, mask, **samples, alpha=0.7, ball="frobenius")
        found.append((anit_kernels.nrm_init(e, mask, mask, **samples), x1))
    (x0, x1), (y0, y1) = found
    assert torch.equal(x0, y0) and torch.equal(x1, y1)


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that lies behind 2**32 elements; the memory before it is never touched, so it costs nothing."""
    monkeypatch.setenv("ANIT_KERNEL", "triton")
    rows, width = 3, 4096
    behind = 2**20 + 2
    e = torch.empty(behind + rows, width, dtype=torch.bfloat16)
    e[-rows:] = torch.randn(rows, width)
    everything = torch.ones(behind + rows, dtype=torch.bool)
    samples = KEYS | {"sample_ids": torch.tensor([9]), "beta": torch.zeros(1), "max_seqlen": rows}
    far = anit_kernels.nrm_init(
        e, everything, everything, **samples, cu_seqlens=torch.tensor([behind, behind + rows], dtype=torch.int32)
    )
    near = anit_kernels.nrm_init(
        e[-rows:].clone(), everything[:rows], everything[:rows], **samples,
        cu_seqlens=torch.tensor([0, rows], dtype=torch.int32),
    )  # fmt: skip
    assert torch.equal(far[-rows:], near)


@triton.jit
def philox_kernel(words, counter, key, CALLS: tl.constexpr, ROUNDS: tl.constexpr):
    i = tl.arange(0, CALLS)
    c0, c1, c2, c3 = (
        tl.load(counter + i).to(tl.uint32),
        tl.load(counter + CALLS + i).to(tl.uint32),
        tl.load(counter + 2 * CALLS + i).to(tl.uint32),
        tl.load(counter + 3 * CALLS + i).to(tl.uint32),
    )
    result = cells.philox_words(c0, c1, c2, c3, tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32), ROUNDS)
    for j in tl.static_range(4):
        tl.store(words + j * CALLS + i, result[j].to(tl.int64))


def kernel_words(counter: Tensor, key: tuple[int, int], rounds: int) -> Tensor:
    words = torch.full_like(counter, -1)
    philox_kernel[(1,)](words, counter, torch.tensor(key), CALLS=counter.shape[1], ROUNDS=rounds)
    return words


@pytest.mark.parametrize(
    ("rounds", "words"),
    [(7, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)), (10, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1))],
)
def test_kernel_philox_gives_the_published_vectors(rounds: int, words: tuple[int, ...]) -> None:
    counter = torch.tensor(PI[:4])[:, None].repeat(1, 2)
    assert kernel_words(counter, (PI[4], PI[5]), rounds).T.tolist() == [list(words)] * 2


def test_kernel_philox_equals_the_reference() -> None:
    torch.manual_seed(1)
    counter = torch.randint(0, 2**32, (4, 64))
    reference = torch.stack(philox_4x32(list(counter), (7, 2**32 - 1)))
    assert torch.equal(kernel_words(counter, (7, 2**32 - 1), 7), reference)


@pytest.mark.parametrize("width", [1, 6, 8, 64, 72, 576, 640, 641, 896, 2048, 3584, 4096, 5120, 8192])
@pytest.mark.parametrize("warps", [nrm_triton.CHUNK_WARPS, nrm_triton.ONE_LAUNCH_WARPS])
def test_tiles_cover_a_row_once(width: int, warps: int) -> None:
    tile = nrm_triton.tiling(width, 32 * warps)
    assert 32 * warps == tile.TOKENS * tile.CELLS
    assert tile.ROW % (tile.CELLS * tile.UNROLL) == 0
    cells = max((rank * width + width - 1) // 8 - rank * width // 8 + 1 for rank in range(8))
    assert cells <= tile.ROW < cells + tile.CELLS
    assert width % 8 or cells == tile.ROW
