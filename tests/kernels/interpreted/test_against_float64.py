"""Both implementations against NRM in float64, over odd shapes, ragged and holey masks and hostile gradients.

The reference is docs/method.md section 4 as written; only the uniforms come from the package, which tests them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import anit_kernels
from anit_kernels import nrm_triton
from anit_kernels.philox import uniforms

DTYPE_IDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Expected(NamedTuple):
    """x0 and x1 [B, T, D]; delta0 and delta1 [B, T, D]; the statistics [B]; all float64 (clipped, finite: bool)."""

    x0: Tensor
    x1: Tensor
    delta0: Tensor
    delta1: Tensor
    stats: dict[str, Tensor]


def expected(grad: Tensor, e: Tensor, samples: dict[str, Any], alpha: float, ball: str) -> Expected:
    """NRM of a padded batch; `samples` are the arguments of `nrm_init` by name."""
    scope = samples["mask"] & samples["attended"]
    delta0, delta1 = torch.zeros_like(e, dtype=torch.float64), torch.zeros_like(e, dtype=torch.float64)
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("delta0_norm", "grad_norm", "delta1_norm", "delta_dot_grad", "clipped", "finite")
    }
    for i in range(len(e)):
        rank = samples["attended"][i].cumsum(0) - 1
        width = e.shape[-1]
        u = uniforms(
            int(samples["attended"][i].sum()) * width, samples["seed"], samples["step"], int(samples["sample_ids"][i]),
            e.device,
        )  # fmt: skip
        eps = float(samples["eps"][i]) if isinstance(samples["eps"], Tensor) else samples["eps"]
        n = max(int(scope[i].sum()), 1) * width
        noise = u.double().view(-1, width)[rank[scope[i]]]
        delta0[i, scope[i]] = noise * 10 / n**0.5 * eps * (1 - float(samples["beta"][i]))

        g = torch.where(scope[i][:, None], grad[i], 0).float()
        finite = g.square().sum().isfinite()
        grad_norm = g.double().norm()
        if not finite:
            g = torch.zeros_like(g)
        v = delta0[i] + alpha * g.double() / max(float(g.double().norm()), 1e-8)
        norm = v.norm()
        delta1[i], clipped = v, torch.tensor(False)
        if ball == "frobenius" and norm > eps:
            delta1[i], clipped = v * (eps / norm), torch.tensor(True)
        elif ball == "linf":
            delta1[i], clipped = v.clamp(-eps, eps), (v.abs() > eps).any()
        values = (delta0[i].norm(), grad_norm, delta1[i].norm(), (delta1[i] * g.double()).sum(), clipped, finite)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    stats = {name: torch.stack(column) for name, column in columns.items()}
    return Expected(e.double() + delta0, e.double() + delta1, delta0, delta1, stats)


def assert_rounded(x: Tensor, exact: Tensor, e: Tensor, delta: Tensor) -> None:
    """|x - exact| <= 2e-6 of the sample's max(|e|, |delta|), plus half a unit in the last place of x's dtype."""
    allowed = 2e-6 * torch.maximum(e.double().abs(), delta.abs()).amax((1, 2), keepdim=True)
    if x.dtype != torch.float32:
        info = torch.finfo(x.dtype)
        magnitude = (exact.abs() + allowed).clamp(min=info.smallest_normal)
        allowed = allowed + info.eps / 2 * torch.exp2(magnitude.log2().floor())
    excess = (x.double() - exact).abs() - allowed
    # NaN in x must fail too, so the comparison is not turned round.
    assert (excess <= 0).all(), f"off by {excess.max():.3g} more than allowed"


@pytest.fixture(params=["one-launch", "two-launches", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in one launch whatever the size, in two with several programs a sample, and the reference."""
    monkeypatch.setenv("ANIT_KERNEL", "reference" if request.param == "reference" else "triton")
    monkeypatch.setattr(nrm_triton, "ONE_LAUNCH_ELEMENTS", 1 << 30 if request.param == "one-launch" else 0)
    monkeypatch.setattr(nrm_triton, "CHUNK_ELEMENTS", 4096)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by operations, not elements: the large shapes need few, large tiles."""
    monkeypatch.setattr(nrm_triton, "ONE_LAUNCH_WARPS", 64)
    monkeypatch.setattr(nrm_triton, "CHUNK_WARPS", 32)
    monkeypatch.setattr(nrm_triton, "CHUNK_ELEMENTS", 65536)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that an element nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def batch(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Gradient, embeddings and samples: the first sample whole, then left-padded, right-padded, holey, all padding."""
    torch.manual_seed(seed)
    rows, length, width = shape
    attended = torch.ones(rows, length, dtype=torch.bool)
    mask = torch.ones(rows, length, dtype=torch.bool)
    for i in range(1, rows):
        pad = int(torch.randint(0, length, ()))
        if i == 1:
            attended[i, :pad] = False
        elif i == 2:
            attended[i, length - pad :] = False
        elif i == 3:
            attended[i] = torch.rand(length) < 0.7
            mask[i] = torch.rand(length) < 0.6
        else:
            attended[i] = False
    samples = {
        "mask": mask,
        "attended": attended,
        "seed": 2**63 + 11 * seed,
        "step": 2**31 + seed,
        "sample_ids": torch.randint(-(2**62), 2**62, (rows,)),
        "eps": torch.tensor([1.0, 0.5, 2.0, 0.01, 1.0])[:rows],
        "beta": torch.tensor([0.3, 0.0, 0.9, 0.5, 0.2])[:rows],
    }
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), samples


def check(grad: Tensor, e: Tensor, samples: dict[str, Any], alpha: float, ball: str) -> anit_kernels.NrmStats:
    """Run both functions and compare all they return with float64."""
    want = expected(grad, e, samples, alpha, ball)
    x0 = anit_kernels.nrm_init(e, **samples)
    x1, stats = anit_kernels.nrm_step(grad, e, **samples, alpha=alpha, ball=ball)
    assert x0.dtype == x1.dtype == e.dtype
    assert_rounded(x0, want.x0, e, want.delta0)
    assert_rounded(x1, want.x1, e, want.delta1)
    outside = ~(samples["mask"] & samples["attended"])
    assert torch.equal(x0[outside], e[outside])
    assert torch.equal(x1[outside], e[outside])

    finite = want.stats["finite"]
    assert torch.equal(stats.finite, finite)
    assert torch.equal(stats.clipped, want.stats["clipped"])
    torch.testing.assert_close(stats.delta0_norm.double(), want.stats["delta0_norm"], rtol=2e-6, atol=1e-30)
    # The closed form's error is one of the terms it adds up; where they cancel, that is more than one of their sum.
    error = (stats.delta1_norm.double() - want.stats["delta1_norm"]).abs()
    assert (error <= 2e-6 * torch.maximum(want.stats["delta0_norm"], want.stats["delta1_norm"])).all()
    torch.testing.assert_close(stats.grad_norm.double()[finite], want.stats["grad_norm"][finite], rtol=2e-6, atol=1e-18)
    # An atol for gradients so small that their squares are 0 in float32.
    scale = (want.stats["delta1_norm"] * want.stats["grad_norm"])[finite]
    error = (stats.delta_dot_grad.double() - want.stats["delta_dot_grad"])[finite].abs()
    assert (error <= 2e-6 * scale + 1e-30).all()
    assert (stats.delta_dot_grad[~finite] == 0).all()
    return stats


SHAPES = [(1, 1, 1), (5, 3, 6), (4, 130, 6), (5, 17, 64), (4, 9, 576), (1, 130, 576), (3, 4, 197), (2, 3, 2048)]
# Each dtype meets half of the shapes, each shape at least one dtype.
CASES = [(SHAPES[n], dtype) for n in range(len(SHAPES)) for m, dtype in enumerate(DTYPE_IDS) if (n + m) % 2 == 0]


@pytest.mark.parametrize(
    ("shape", "dtype"), CASES, ids=[f"B{b}-T{t}-D{d}-{DTYPE_IDS[dtype]}" for (b, t, d), dtype in CASES]
)
def test_shapes_and_dtypes(
    shape: tuple[int, int, int], dtype: torch.dtype, implementation: None, large_tiles: None
) -> None:
    # Each dtype meets each ball.
    ball = anit_kernels.BALLS[(SHAPES.index(shape) + list(DTYPE_IDS).index(dtype)) % 3]
    check(*batch(shape, dtype), alpha=0.7, ball=ball)


@pytest.mark.parametrize(
    ("shape", "ball"), [((5, 17, 64), "frobenius"), ((2, 20, 72), "linf"), ((5, 17, 64), "none")], ids=str
)
def test_tiles_as_they_ship(shape: tuple[int, int, int], ball: str, implementation: None) -> None:
    check(*batch(shape, torch.bfloat16, seed=8), alpha=0.7, ball=ball)


@pytest.mark.parametrize(
    ("change", "ball"),
    [
        ({"alpha": 0.0}, "frobenius"), ({"alpha": 0.0}, "linf"), ({"eps": 0.0}, "frobenius"), ({"eps": 0.0}, "linf"),
        ({"beta": 0.0}, "none"), ({"beta": 1.0}, "frobenius"),
    ],
    ids=str,
)  # fmt: skip
def test_limits(change: dict[str, float], ball: str, implementation: None) -> None:
    grad, e, samples = batch((4, 9, 64), torch.float32, seed=1)
    if "eps" in change:
        samples["eps"] = change["eps"]
    if "beta" in change:
        samples["beta"] = torch.full((4,), change["beta"])
    check(grad, e, samples, change.get("alpha", 0.7), ball)


@pytest.mark.parametrize("ball", anit_kernels.BALLS)
def test_gradients_of_every_size(ball: str, implementation: None) -> None:
    """Zero, too small and too large to square, infinite, not a number: a sample each."""
    grad, e, samples = batch((5, 9, 64), torch.float32, seed=2)
    samples["mask"][:], samples["attended"][:] = True, True
    grad[0] = 0
    grad[1] *= 1e-30
    grad[2] *= 1e30
    grad[3, 4, 7] = torch.inf
    grad[4, 8, 63] = torch.nan
    stats = check(grad, e, samples, 0.7, ball)
    assert stats.finite.tolist() == [True, True, False, False, False]


def test_gradient_outside_the_scope_is_not_read(implementation: None) -> None:
    grad, e, samples = batch((4, 9, 64), torch.bfloat16, seed=3)
    grad[~(samples["mask"] & samples["attended"])] = torch.nan
    assert check(grad, e, samples, 0.7, "frobenius").finite.all()


@pytest.mark.parametrize(
    ("ball", "share"), [("frobenius", 0.5), ("frobenius", 0.9), ("frobenius", 2.0), ("linf", 0.9), ("none", 0.9)]
)
def test_gradient_against_delta0(ball: str, share: float, implementation: None) -> None:
    """g = -c * delta0: the step of length alpha goes straight back along delta0."""
    _, e, samples = batch((3, 9, 64), torch.float32, seed=4)
    samples["beta"] = torch.zeros(3)
    samples["eps"] = 1.0
    delta0 = anit_kernels.nrm_init(torch.zeros_like(e), **samples)
    check(-3.0 * delta0, e, samples, share * 5.77, ball)


def test_full_cancellation_gives_no_nan(implementation: None) -> None:
    """alpha = ||delta0||: the closed form of ||delta1||^2 is a difference of equal numbers."""
    _, e, samples = batch((1, 9, 64), torch.float32, seed=5)
    delta0 = anit_kernels.nrm_init(torch.zeros_like(e), **samples)
    x1, stats = anit_kernels.nrm_step(-delta0, e, **samples, alpha=float(delta0.norm()), ball="frobenius")
    torch.testing.assert_close(x1, e, rtol=0, atol=2e-6 * float(e.abs().max()))
    assert stats.delta1_norm <= 1e-3 * stats.delta0_norm


@pytest.mark.parametrize("width", [6, 64, 576])
def test_delta0_is_the_same_bits_everywhere(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, e, samples = batch((4, 33, width), torch.float32, seed=6)
    results = []
    for implementation in ("triton", "reference"):
        monkeypatch.setenv("ANIT_KERNEL", implementation)
        results.append(anit_kernels.nrm_init(torch.zeros_like(e), **samples).view(torch.int32))
    assert torch.equal(*results)
    assert results[0].count_nonzero() > 0


@pytest.mark.parametrize("dtype", DTYPE_IDS, ids=DTYPE_IDS.get)
def test_strided_and_misaligned_inputs(dtype: torch.dtype, implementation: None) -> None:
    grad, e, samples = batch((3, 9, 64), dtype, seed=7)
    strided = e.transpose(0, 1).contiguous().transpose(0, 1)
    shifted = torch.cat([grad.new_zeros(1), grad.flatten()])[1:].view_as(grad)
    samples["mask"] = samples["mask"].T.contiguous().T
    check(shifted, strided, samples, 0.7, "frobenius")
