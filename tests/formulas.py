"""The methods of docs/method.md section 5 in plain PyTorch: what a step's loss is, given a loss on embeddings.

Each formula takes a `Step` and returns the scalar to backpropagate. Nothing here uses the project's methods; only
the random starts come from the kernels' counter-based generator, which tests/kernels checks by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anit_ds.adversarial import Batch
from anit_ds.config import MethodConfig
from anit_kernels import nrm_init


@dataclass
class Step:
    """A batch, its embeddings e [B, T, D], and `loss(x)`: the mean answer loss at embeddings x."""

    batch: Batch
    e: Tensor
    loss: Callable[[Tensor], Tensor]
    settings: MethodConfig
    seed: int = 1
    log_probs: Callable[[Tensor], Tensor] | None = None  # [A, V] at the answer's tokens

    @property
    def scope(self) -> Tensor:
        return self.batch.scope.unsqueeze(-1).float()

    def gradient(self, delta: Tensor) -> Tensor:
        delta = delta.clone().requires_grad_(True)
        return torch.autograd.grad(self.loss(self.e + delta), delta)[0] * self.scope

    def uniform_start(self, eps: float, scope: Tensor, beta: Tensor) -> Tensor:
        """Eq. 7: (10 / sqrt(N)) * U(-eps, eps) * (1 - beta)."""
        b = self.batch
        return nrm_init(torch.zeros_like(self.e), scope, b.attended, self.seed, b.step, b.sample_ids, eps, beta)

    def way(self, g: Tensor) -> Tensor:
        """Where `anit` steps to; nowhere in a sample without a token in scope."""
        return g.sign() if self.settings.step == "sign" else g / norm(g).clamp_min(1e-8)

    def on_ball(self, delta: Tensor) -> Tensor:
        eps, ball = self.settings.eps, self.settings.ball
        if ball != "frobenius":
            return delta.clamp(-eps, eps) if ball == "linf" else delta
        return delta * (eps / norm(delta).clamp_min(1e-30)).clamp(max=1.0)

    def clean_and_at(self, delta: Tensor) -> Tensor:
        x = self.e + delta.detach()
        second = self.apart(self.e, x) if self.settings.loss == "consistency" else self.loss(x)
        return self.loss(self.e) + self.settings.lambda_ * second

    def apart(self, x: Tensor, y: Tensor) -> Tensor:
        """Half of KL both ways between the answer's distributions, the mean over its tokens."""
        assert self.log_probs is not None
        p, q = self.log_probs(x), self.log_probs(y)
        return sum(F.kl_div(b, a, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p))) / 2


def norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None]


def sft(s: Step) -> Tensor:
    return s.loss(s.e)


def neftune(s: Step) -> Tensor:
    attended = s.batch.attended
    return s.loss(s.e + s.uniform_start(s.settings.neftune_alpha / 10, attended, torch.zeros_like(s.batch.beta)))


def random(s: Step) -> Tensor:
    return s.clean_and_at(s.on_ball(delta0(s)))


def fgsm(s: Step) -> Tensor:
    return s.clean_and_at(s.settings.eps * s.gradient(torch.zeros_like(s.e)).sign())


def fgm(s: Step) -> Tensor:
    g = s.gradient(torch.zeros_like(s.e))
    return s.clean_and_at(s.settings.eps * g / norm(g))


def pgd(s: Step) -> Tensor:
    delta = torch.zeros_like(s.e)
    for _ in range(s.settings.steps):
        g = s.gradient(delta)
        delta = s.on_ball(delta + s.settings.alpha * g / norm(g))
    return s.loss(s.e + delta)


def freelb(s: Step) -> Tensor:
    total = torch.tensor(0.0)
    delta = s.uniform_start(s.settings.init_norm / 10, s.batch.scope, torch.zeros_like(s.batch.beta))
    for _ in range(s.settings.steps):
        total = total + s.loss(s.e + delta) / s.settings.steps
        g = s.gradient(delta)
        delta = s.on_ball(delta + s.settings.alpha * g / norm(g))
    return total


class FreeAT:
    """`freeat` has a memory: the delta of the replay before."""

    def __init__(self) -> None:
        self.delta: Tensor | None = None

    def __call__(self, s: Step) -> Tensor:
        if s.batch.step % s.settings.steps == 0 or self.delta is None:
            self.delta = torch.zeros_like(s.e)
        loss = s.loss(s.e + self.delta)
        g = s.gradient(self.delta)
        self.delta = s.on_ball(self.delta + s.settings.alpha * g / norm(g))
        return loss


def delta0(s: Step) -> Tensor:
    return s.settings.start * s.uniform_start(s.settings.eps, s.batch.scope, s.batch.beta)


class Anit:
    """`anit`; with `updates: alternating` it has a memory, the clean gradient of the step before."""

    def __init__(self) -> None:
        self.g: Tensor | None = None

    def __call__(self, s: Step) -> Tensor:
        if s.settings.updates == "joint":
            return anit(s)
        if s.batch.step % 2 == 0:
            self.g = s.gradient(torch.zeros_like(s.e))
            return s.loss(s.e)
        assert self.g is not None
        return s.settings.lambda_ * s.loss(s.e + s.on_ball(delta0(s) + s.settings.alpha * s.way(self.g)))


def anit(s: Step) -> Tensor:
    start = delta0(s)
    g = s.gradient(start if s.settings.gradient == "attack" else torch.zeros_like(start))
    return s.clean_and_at(s.on_ball(start + s.settings.alpha * s.way(g)))


def formulas() -> dict[str, Callable[[Step], Tensor]]:
    """A fresh set, so that no memory is shared between two runs."""
    by_name: dict[str, Any] = {
        "sft": sft, "noisy_sft": sft, "neftune": neftune, "random": random, "fgsm": fgsm, "fgm": fgm, "pgd": pgd,
        "freelb": freelb, "freeat": FreeAT(), "anit": Anit(),
    }  # fmt: skip
    return by_name
