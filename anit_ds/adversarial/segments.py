"""Attention for packed batches: samples that lie end to end in one row see only themselves.

Under `flash_attention_2` (or 3) transformers' own variable-length path does it. Elsewhere the model gets an attention
function of ours, registered with transformers, that runs scaled-dot-product attention a sample at a time: on a CPU, for
8 samples of about 100 tokens and SmolLM2's heads, forward and backward take 20 ms so (bfloat16), 52 ms under one mask
of the whole row, 23 ms re-padded; float32: 10, 55 and 13 ms. Batches that are not packed go on to the attention the
model was loaded with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from anit_ds.adversarial.batch import Batch
from anit_ds.errors import InputError

_WHOLE_PAST = {"full_attention", "sliding_attention"}


class SegmentAttention:
    """Makes a transformers causal LM take packed batches; `remove()` gives it its own attention back.

    Raises InputError for a model in which a sample would see its neighbour, or whose attention has more to it than
    causal masks, sliding windows and soft caps.
    """

    def __init__(self, model: nn.Module) -> None:
        wrapped: Any = model
        self._model: Any = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
        _refuse_other_mixers(self._model)
        self._own: str = self._model.config._attn_implementation
        self.varlen = is_flash_attention_requested(requested_attention_implementation=self._own)
        if not self.varlen:
            self._model.set_attn_implementation(_register(self._own))

    def remove(self) -> None:
        if not self.varlen:
            self._model.set_attn_implementation(self._own)

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward is given beside ids and positions."""
        assert batch.lengths is not None and batch.cu_seqlens is not None
        if self.varlen:
            longest = max(batch.lengths)
            return {
                "cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens,
                "max_length_q": longest, "max_length_k": longest,
            }  # fmt: skip
        # transformers takes a mask of four dimensions as it is: nothing of size T x T is built, and ours is not read.
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.cu_seqlens.device)
        return {"attention_mask": unread, "segment_lengths": batch.lengths}


def _refuse_other_mixers(model: Any) -> None:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    layers = set(getattr(config, "layer_types", None) or _WHOLE_PAST)
    if (
        not getattr(model, "_can_set_attn_implementation", lambda: False)()
        or getattr(model, "_is_stateful", False)
        or getattr(config, "layers_block_type", None)
        or getattr(config, "attention_chunk_size", None)
        or getattr(config, "use_bidirectional_attention", False)
        or not layers <= _WHOLE_PAST
    ):
        raise InputError(
            f"train.padding_free: a {kind} model mixes tokens by more than causal attention with windows, so samples "
            "laid end to end would see each other; use train.padding_free=false"
        )


def _register(own: str) -> str:
    """Registers `own` with samples apart, under a name of its own; returns the name."""
    name = f"{own}_by_sample"
    if name not in ALL_ATTENTION_FUNCTIONS:

        def by_sample(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
            segment_lengths: tuple[int, ...] | None = None, **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
            if segment_lengths is None:
                return _own_attention(own, module)(module, query, key, value, attention_mask, **kwargs)
            return _attention_by_sample(module, query, key, value, segment_lengths, **kwargs), None

        AttentionInterface.register(name, by_sample)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _own_attention(own: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that serves `own`; eager attention is not registered, it stands beside the module."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    return function


def _attention_by_sample(
    module: nn.Module,
    query: Tensor,  # [1, H, total, d]
    key: Tensor,  # [1, H_kv, total, d]
    value: Tensor,
    lengths: tuple[int, ...],
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """[1, total, H, d]: causal attention inside each run of `lengths` tokens."""
    if s_aux is not None or position_bias is not None:
        raise InputError(
            f"train.padding_free: {type(module).__name__} adds sinks or a position bias to its scores, which packed "
            "batches do not have; use train.padding_free=false"
        )
    attend = _capped_attention if softcap else _sdpa
    outputs = []
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        window = None if sliding_window is None or q.shape[2] <= sliding_window else sliding_window
        outputs.append(attend(q, k, v, window, dropout, scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float, scaling: float | None, _: float | None
) -> Tensor:
    mask = None if window is None else _banded(q.shape[2], window, q.device)
    dtype = q.dtype
    if q.device.type == "cpu":  # PyTorch's bfloat16 backward takes twice as long there on short samples
        q, k, v = q.float(), k.float(), v.float()
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
    ).to(dtype)


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float, scaling: float | None, softcap: float | None
) -> Tensor:
    """softmax(softcap * tanh(q k^T * scaling / softcap)) v (Gemma 2): SDPA has no place for the cap."""
    assert softcap is not None
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~_banded(q.shape[2], window, q.device), torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), p=dropout)
    return weights @ v


def _banded(length: int, window: int | None, device: torch.device) -> Tensor:
    """[length, length] bool: the token itself and what stands before it, at most `window` tokens in all."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)
