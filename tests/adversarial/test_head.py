"""The head on answer positions against one float32 product over everything."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from anit_ds.adversarial.head import AnswerHead, _Float32Logits

_VOCABULARY, _WIDTH = 70_001, 64  # three slices on a CPU, the last one ragged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [False, True], ids=["frozen", "trained with a bias"])
def test_logits_and_gradient_are_float32_exact(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=_WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.lm_head = nn.Linear(_WIDTH, _VOCABULARY, bias=bias, dtype=dtype).requires_grad_(bias)
    head = AnswerHead(model)
    hidden = torch.randn(2, 5, _WIDTH, dtype=dtype, requires_grad=True)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 3])
    weights = torch.randn(3, _VOCABULARY)

    with head.only_at(rows, positions):
        logits = model.lm_head(hidden)
    linear = model.lm_head
    trained = [hidden, *(p for p in linear.parameters() if p.requires_grad)]
    gradient, *of_head = torch.autograd.grad((logits * weights).sum(), trained)

    exact = hidden.detach().double().requires_grad_()
    weight = linear.weight.detach().double().requires_grad_()
    expected = exact[rows, positions] @ weight.T + (linear.bias.double() if bias else 0.0)
    expected_gradient, of_weight = torch.autograd.grad((expected * weights.double()).sum(), [exact, weight])
    if of_head:
        torch.testing.assert_close(of_head[0], of_weight.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    if of_head and bias:
        torch.testing.assert_close(of_head[1], weights.sum(0).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert logits.dtype is torch.float32 and gradient.dtype is dtype
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    head.remove()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_multiplies_halves_without_a_float32_copy_of_the_weight(dtype: torch.dtype) -> None:
    """On tensors without values, so on no GPU: which products would run, and in which dtypes."""
    with FakeTensorMode(), Products() as products:
        weight = torch.empty(96, 16, dtype=dtype, device="cuda")
        hidden = torch.empty(5, 16, dtype=dtype, device="cuda")
        # By hand, as autograd's engine wants a real device.
        kept = SimpleNamespace(
            save_for_backward=lambda *tensors: None, saved_tensors=(weight, None), needs_input_grad=(True, False, False)
        )
        logits = _Float32Logits.forward(kept, hidden, weight, None, True)
        gradient, *_ = _Float32Logits.backward(kept, torch.empty_like(logits))
    assert logits.dtype is torch.float32 and logits.shape == (5, 96)
    assert gradient.dtype is dtype and gradient.shape == (5, 16)
    exact = torch.float32  # what float16's gradient is multiplied in: most of a softmax's are too small for halves
    assert products.operands == [dtype, dtype if dtype is torch.bfloat16 else exact]


class Products(TorchDispatchMode):
    """Notes the dtype in which each matrix product takes its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.operands.append(args[-1].dtype if func.overloadpacket is not torch.ops.aten.mm else args[0].dtype)
        return func(*args, **(kwargs or {}))
