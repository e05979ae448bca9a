"""Small models whose answers are of many lengths, prompts, and the reference: one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from anit_ds.tiny import tiny_model, tiny_tokenizer

STOPS = list(range(1, 80))  # of 512 tokens: about one in seven ends an answer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`make_model("gemma2", sliding_window=16)`: random, with a LoRA that does something, in float32."""

    def make(family: str = "llama", **changes: Any) -> Any:
        # Untied and large weights: what follows differs from place to place and never by a hair.
        model = tiny_model(family, **{"tie_word_embeddings": False, "initializer_range": 0.15, **changes})
        model.generation_config.eos_token_id = STOPS
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        table = model.get_input_embeddings().weight
        table.data[0] = table.data[2]  # padding is zero at first, which a model that looks at it may not notice
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        return adapted.requires_grad_(False).train()

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def generated() -> Callable[..., list[list[int]]]:
    """Greedy answers of `model.generate`, one prompt at a time: no batch, no padding, no kept prefix."""

    def generate(model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        model.eval()
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens,
                pad_token_id=0,
            )  # fmt: skip
            answers.append(out[0, len(prompt) :].tolist())
        return answers

    return generate


@pytest.fixture(scope="session")
def log_probability() -> Callable[..., float]:
    """Of an answer after a prompt: one plain pass over both."""

    @torch.no_grad()
    def compute(model: Any, prompt: list[int], answer: list[int]) -> float:
        model.eval()
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        start = len(prompt) - 1
        return sum(logits[start + i, token].item() for i, token in enumerate(answer))

    return compute
