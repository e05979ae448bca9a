"""Attention of a packed row on a CPU: PyTorch's flash kernel once for each rectangle of a `Layout`, merged exactly.

A softmax over several blocks of keys is the blocks' softmaxes, each weighted by its share of the sum of exponentials;
the kernel returns the logarithm of that sum. Backwards, the kernel given the MERGED output and logarithm computes each
block's part of the true gradients: the step that ring attention takes between devices (Liu et al., 2023). Nothing is
copied together, masked or padded, and a run that many samples share is read once for all of them.

In float32: the kernel's bfloat16 backward takes 5 to 20 times as long on runs of 10 to 100 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anit_ds.adversarial.layout import Layout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def merged_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """[1, row, H, d] in the query's dtype, from query [1, H, row, d] and key, value [1, H_kv, kept + row, d]."""
    out: Tensor = _Merged.apply(query, key, value, layout, scale)
    return out


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        q, k, v = query.float(), _repeated(key, groups), _repeated(value, groups)
        # The row's runs on themselves cover every query, so these calls make what the others are merged into.
        outs, logs = [], []
        for call in layout.calls[: len(layout.lengths)]:
            out, log = _call(q, k, v, call, scale)
            outs.append(out)
            logs.append(log)
        merged, total = torch.cat(outs, 2), torch.cat(logs, 2)
        for call in layout.calls[len(layout.lengths) :]:
            out, log = _call(q, k, v, call, scale)
            before, seen = merged[:, :, call.start : call.stop], total[:, :, call.start : call.stop]
            both = torch.logaddexp(seen, log)
            before.mul_((seen - both).exp_().unsqueeze(-1)).addcmul_(out, (log - both).exp_().unsqueeze(-1))
            seen.copy_(both)
        ctx.save_for_backward(query, key, value, merged, total)
        ctx.layout, ctx.scale = layout, scale
        return merged.transpose(1, 2).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, merged, total = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        q, k, v = query.float(), _repeated(key, groups), _repeated(value, groups)
        back = grads[0].transpose(1, 2).float().contiguous()
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for call in ctx.layout.calls:
            rows, keys = slice(call.start, call.stop), slice(call.first, call.end)
            parts = _backward(
                back[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], merged[:, :, rows], total[:, :, rows],
                0.0, call.causal, scale=ctx.scale,
            )  # fmt: skip
            grad_q[:, :, rows] += parts[0]
            grad_k[:, :, keys] += parts[1]
            grad_v[:, :, keys] += parts[2]
        return grad_q.to(query.dtype), _gathered(grad_k, key), _gathered(grad_v, value), None, None


def _call(q: Tensor, k: Tensor, v: Tensor, call: Any, scale: float) -> tuple[Tensor, Tensor]:
    keys = slice(call.first, call.end)
    out, log = _forward(q[:, :, call.start : call.stop], k[:, :, keys], v[:, :, keys], 0.0, call.causal, scale=scale)
    return out, log


def _repeated(shared: Tensor, groups: int) -> Tensor:
    """[1, H_kv, T, d] -> [1, H, T, d] float32: the kernel knows no heads that share keys."""
    return shared.float().repeat_interleave(groups, dim=1)


def _gathered(grad: Tensor, shared: Tensor) -> Tensor:
    """The gradient of what `_repeated` repeated."""
    return grad.unflatten(1, (shared.shape[1], -1)).sum(2).to(shared.dtype)
