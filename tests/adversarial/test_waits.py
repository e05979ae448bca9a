"""Nothing in a step asks the device for a number: each such question would make a GPU finish its queue first."""

from __future__ import annotations

from itertools import product
from typing import Any

import peft
import pytest
import torch
from matrix import rows
from nrm import FULL_NRM
from torch.utils._python_dispatch import TorchDispatchMode

from anit_ds.adversarial import Batch, PerturbableLM, PrefixTreeLM, build_method
from anit_ds.adversarial.methods import delta
from anit_ds.adversarial.rules import METHODS
from anit_ds.config import MethodConfig
from anit_ds.data.prompts import Encoded
from anit_ds.tiny import tiny_model
from anit_ds.training.batching import collate

# What copies a number, or the size of a result, from the device to the host.
ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
SWITCHED: dict[str, dict[str, Any]] = {
    "anit-attack": FULL_NRM,
    "anit-sign": {**FULL_NRM, "step": "sign", "start": 0.1},
    "anit-consistency": {**FULL_NRM, "loss": "consistency"},
}
MODES: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packed": True},
    "tree": {"packed": True, "schedule": "prefix_tree"},
    "tree, trunk": {"packed": True, "schedule": "prefix_tree", "tokens": "instruction"},
}


class Questions(TorchDispatchMode):
    """Counts the operators that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.listening = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if self.listening and (
            name in ASKS or (name == "index" and any(t is not None and t.dtype is torch.bool for t in args[1]))
        ):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Questions:
    """The kernels' PyTorch reference, which asks, stands in for Triton kernels, which do not."""
    questions = Questions()

    def unheard(kernel: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            questions.listening = False
            try:
                return kernel(*args, **kwargs)
            finally:
                questions.listening = True

        return call

    for name in ("nrm_init", "nrm_step"):
        monkeypatch.setattr(delta, name, unheard(getattr(delta, name)))
    return questions


def lora_model(family: str) -> Any:
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, init_lora_weights=False)
    return peft.get_peft_model(tiny_model(family).requires_grad_(False), settings, autocast_adapter_dtype=False).train()


def batch_of(mode: str) -> Batch:
    shared = list(range(10, 22))
    samples = [
        Encoded(
            key, [*shared, *range(30, 30 + n), 5, 6, 7, 8], [9] * (n % 3 + 1), (12 + n, 15 + n), (12, 12 + n), 0.0, "x"
        )
        for key, n in enumerate((3, 9, 5))
    ]
    settings = MODES[mode]
    return collate(
        samples, pad_id=0, tokens=settings.get("tokens", "prompt"), beta=[0.2] * 3, step=0, denominator=6.0,
        packed=settings.get("packed", False),
    )  # fmt: skip


# A window needs the model's own mask in a padded batch, which transformers looks at.
EVERY = [
    (method, mode, family)
    for method, mode, family in product([*METHODS, *SWITCHED], MODES, ["llama", "qwen2", "gemma2", "gemma3_text"])
    if not (mode == "padded" and family.startswith("gemma")) and (method, mode) != ("neftune", "tree, trunk")
]
QUICK = [("padded", "llama"), ("tree, trunk", "llama")]


@pytest.mark.parametrize(
    ("method", "mode", "family"), rows(EVERY, quick=[of for of in EVERY if of[1:] in QUICK or of[0] == "anit-attack"])
)
def test_no_step_waits(method: str, mode: str, family: str, questions: Questions):
    lm = (PrefixTreeLM if "schedule" in MODES[mode] else PerturbableLM)(lora_model(family))
    lm.spare_masks()
    settings = SWITCHED.get(method, {"name": method})
    built = build_method(MethodConfig(**settings), seed=1, scale=1.0)
    batch = lm.prepare(batch_of(mode))
    with questions:
        built.backward(lm, batch)
    assert questions.asked == []


def test_the_counter_sees_a_question():
    with Questions() as questions:
        torch.ones(3).sum().item()
    assert questions.asked == ["_local_scalar_dense"]
