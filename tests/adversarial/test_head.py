"""The head on answer positions against one float32 product over everything."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from anit_ds.adversarial.head import AnswerHead

_VOCABULARY, _WIDTH = 70_001, 64  # three slices on a CPU, the last one ragged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_and_gradient_are_float32_exact(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=_WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.lm_head = nn.Linear(_WIDTH, _VOCABULARY, bias=bias, dtype=dtype).requires_grad_(False)
    head = AnswerHead(model)
    hidden = torch.randn(2, 5, _WIDTH, dtype=dtype, requires_grad=True)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 3])
    weights = torch.randn(3, _VOCABULARY)

    with head.only_at(rows, positions):
        logits = model.lm_head(hidden)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), hidden)

    exact = hidden.detach().double().requires_grad_()
    linear = model.lm_head
    expected = exact[rows, positions] @ linear.weight.double().T + (linear.bias.double() if bias else 0.0)
    (expected_gradient,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    assert logits.dtype is torch.float32 and gradient.dtype is dtype
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    head.remove()
