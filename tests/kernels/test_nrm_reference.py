"""What a user of NRM may rely on, on the reference: the noise's distribution, the balls, padding, scope, batching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anit_kernels import Ball, nrm_init, nrm_step


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIT_KERNEL", "reference")


def samples(attended: Tensor, mask: Tensor | None = None, **changes: Any) -> dict[str, Any]:
    rows = len(attended)
    keys = {"seed": 3, "step": 4, "sample_ids": torch.arange(rows), "eps": 1.0, "beta": torch.full((rows,), 0.3)}
    return {"attended": attended, "mask": attended if mask is None else mask} | keys | changes


def everything(rows: int, length: int) -> Tensor:
    return torch.ones(rows, length, dtype=torch.bool)


def test_delta0_follows_its_distribution() -> None:
    """Uniform within 10 / sqrt(N) * eps * (1 - beta): variance bound^2 / 3, norm 10 / sqrt(3) = 5.77 eps (1 - beta)."""
    rows, length, width, eps, beta = 4, 64, 96, 0.8, 0.3
    delta0 = nrm_init(torch.zeros(rows, length, width), **samples(everything(rows, length), eps=eps)).double()
    n = length * width
    bound = 10 / n**0.5 * eps * (1 - beta)
    assert 0.999 * bound < delta0.abs().max() <= bound
    assert abs(delta0.mean()) < 5 * bound / (3 * rows * n) ** 0.5
    torch.testing.assert_close(delta0.flatten(1).norm(dim=1), torch.full((rows,), 5.7735 * eps * (1 - beta)).double(),
                               rtol=0.02, atol=0)  # fmt: skip


@given(
    eps=st.floats(1e-3, 10), alpha=st.floats(-5, 5), beta=st.floats(0, 1, width=32), length=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_delta1_stays_in_its_ball(eps: float, alpha: float, beta: float, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    grad = torch.randn(2, length, 8, generator=generator)
    arguments = samples(everything(2, length), eps=eps, beta=torch.full((2,), beta), seed=seed)
    zero = torch.zeros_like(grad)
    for ball in ("frobenius", "linf"):
        delta1, stats = nrm_step(grad, zero, **arguments, alpha=alpha, ball=ball)  # type: ignore[arg-type]
        size = delta1.flatten(1).norm(dim=1) if ball == "frobenius" else delta1.abs().amax((1, 2))
        assert (size <= eps * (1 + 1e-6)).all()
        free, _ = nrm_step(grad, zero, **arguments, alpha=alpha, ball="none")
        torch.testing.assert_close(delta1[~stats.clipped], free[~stats.clipped])


@pytest.mark.parametrize("ball", ["frobenius", "linf", "none"])
def test_padding_side_and_batch_do_not_matter(ball: Ball) -> None:
    torch.manual_seed(0)
    e, grad = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    pad = torch.zeros(2, 3, 16)
    attended = everything(2, 5)
    ids = torch.tensor([17, -4])

    def run(e: Tensor, grad: Tensor, attended: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        arguments = samples(attended, sample_ids=ids)
        x0 = nrm_init(e, **arguments)
        return x0[attended], nrm_step(grad, e, **arguments, alpha=0.5, ball=ball)[0][attended]

    alone = run(e, grad, attended, ids)
    left = torch.cat([~everything(2, 3), attended], 1)
    right = torch.cat([attended, ~everything(2, 3)], 1)
    for result in (
        run(torch.cat([pad, e], 1), torch.cat([pad, grad], 1), left, ids),
        run(torch.cat([e, pad], 1), torch.cat([grad, pad], 1), right, ids),
        tuple(map(torch.cat, zip(*(run(e[i : i + 1], grad[i : i + 1], attended[:1], ids[i : i + 1]) for i in (0, 1)),
                                 strict=True))),
    ):  # fmt: skip
        assert torch.equal(result[0], alone[0])
        assert torch.equal(result[1], alone[1])


def test_scopes_share_their_noise_up_to_scale() -> None:
    """A token's noise follows from its rank, so a smaller scope differs by sqrt(N) alone, where the scopes overlap."""
    attended = everything(1, 8)
    prompt = attended.clone()
    prompt[:, 6:] = False
    zero = torch.zeros(1, 8, 16)
    whole = nrm_init(zero, **samples(attended))
    part = nrm_init(zero, **samples(attended, prompt))
    torch.testing.assert_close(part[:, :6], whole[:, :6] * (8 / 6) ** 0.5)
    assert not part[:, 6:].any()


def test_a_token_that_is_not_attended_is_never_in_scope() -> None:
    attended = everything(1, 4)
    attended[:, 0] = False
    x0 = nrm_init(torch.zeros(1, 4, 8), **samples(attended, everything(1, 4)))
    assert not x0[:, 0].any()
    assert torch.equal(x0, nrm_init(torch.zeros(1, 4, 8), **samples(attended)))


def test_every_step_seed_and_sample_draws_anew() -> None:
    zero, attended = torch.zeros(2, 4, 8), everything(2, 4)
    first = nrm_init(zero, **samples(attended))
    assert not torch.equal(first[0], first[1])
    for change in ({"step": 5}, {"seed": 4}, {"sample_ids": torch.arange(2) + 9}):
        assert not torch.isclose(nrm_init(zero, **samples(attended, **change)), first).all(2).any()


def test_inputs_are_left_alone() -> None:
    e, grad = torch.randn(2, 4, 8), torch.full((2, 4, 8), torch.inf)
    before = e.clone(), grad.clone()
    nrm_init(e, **samples(everything(2, 4)))
    nrm_step(grad, e, **samples(everything(2, 4)), alpha=1.0, ball="linf")
    assert torch.equal(e, before[0])
    assert torch.equal(grad, before[1])
