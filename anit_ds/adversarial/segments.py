"""Attention for packed rows: a token sees its own sample's tokens and no others, in the order that a `Layout` gives.

Under `flash_attention_2` (or 3) transformers' own variable-length path does it for samples that lie end to end.
Elsewhere, and for rows in which samples share runs of tokens, the model gets an attention function of ours, registered
with transformers. On a CPU it merges the blocks of `merged_attention`; on other devices it is one masked product for a
row of moderate size, else a product per run. Batches that are not packed go on to the attention the model was loaded
with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.causal import base_of, beyond_causal
from anit_ds.adversarial.layout import Layout, banded
from anit_ds.adversarial.merged_attention import merged_attention
from anit_ds.errors import InputError

# Elements of a row's mask: 64 MB, and 2 ms for an A100 to read, where a launch per run would cost as much.
_LARGEST_MASK = 2**26

KeysAndValues = dict[int, tuple[Tensor, Tensor]]
"""Layer -> its keys and values [1, H_kv, tokens, d]."""


@dataclass
class Segments:
    """What each attention layer is told of a pass."""

    layout: Layout | None  # None: padded rows, whose tokens see what stands before them in their own row
    kept: KeysAndValues = field(default_factory=dict)  # of the layout's kept runs
    keep: KeysAndValues | None = None  # where this pass leaves its own keys and values

    def seen_by(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values of [kept; row]."""
        if self.keep is not None:
            # Only the first time: activation checkpointing runs a layer again to recompute what is kept already.
            self.keep.setdefault(layer, (key, value))
        if not self.kept:
            return key, value
        before, behind = self.kept[layer]
        return torch.cat([before, key], 2), torch.cat([behind, value], 2)


class SegmentAttention:
    """Makes a transformers causal LM take packed rows; `remove()` gives it its own attention back.

    trees: rows in which samples share runs will come, which no variable-length kernel knows.
    Raises InputError for a model in which a sample would see its neighbour, or whose attention has more to it than
    causal masks, sliding windows and soft caps; `asked_by` is the field of the YAML that the sentence names.
    """

    def __init__(self, model: nn.Module, *, trees: bool = False, asked_by: str = "train.padding_free") -> None:
        self._model: Any = base_of(model)
        _refuse_other_mixers(self._model, asked_by)
        self._own: str = self._model.config._attn_implementation
        flash = is_flash_attention_requested(requested_attention_implementation=self._own)
        self.varlen = flash and not trees
        self._serving = "sdpa" if flash else self._own  # a tree's rows, and between its passes the others
        if not self.varlen:
            self._model.set_attn_implementation(_register(self._serving))

    def remove(self) -> None:
        if not self.varlen:
            self._model.set_attn_implementation(self._own)

    def of_samples(self, batch: Batch) -> dict[str, Any]:
        """What the model's forward is given, beside ids and positions, for samples that lie end to end."""
        assert batch.lengths is not None and batch.cu_seqlens is not None
        if self.varlen:
            longest = max(batch.lengths)
            return {
                "cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens,
                "max_length_q": longest, "max_length_k": longest,
            }  # fmt: skip
        return self.of_segments(Segments(Layout(batch.lengths)), batch.input_ids.device)

    def of_causal_rows(self, batch: Batch) -> dict[str, Any] | None:
        """The same for rows that are padded on the right only; None where the model's own mask is needed: for a layer's
        window, and for an attention that is not causal by itself, as SDPA and the flash kernels are.

        No token looks at the padding behind it, so there is nothing to mask. Left without a mask, transformers would
        look for packed sequences in the positions, and wait for the device to find none.
        """
        config = self._model.config
        windows = getattr(config, "sliding_window", None) and set(getattr(config, "layer_types", None) or ()) != {
            "full_attention"
        }
        if self.varlen or windows or self._serving != "sdpa":
            return None
        return self.of_segments(Segments(None), batch.input_ids.device)

    @staticmethod
    def of_segments(segments: Segments, device: torch.device) -> dict[str, Any]:
        """The same for a row of any layout."""
        # transformers takes a mask of four dimensions as it is: nothing of size T x T is built, and ours is not read.
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return {"attention_mask": unread, "segments": segments}


def _is_unread(mask: Tensor | None, key: Tensor) -> bool:
    """Whether a mask is that of `of_segments`: a layer that gets it must have got the segments beside it."""
    return mask is not None and mask.dim() == 4 and mask.shape[-1] == 1 < key.shape[2]


def _refuse_other_mixers(model: Any, asked_by: str) -> None:
    settable = getattr(model, "_can_set_attn_implementation", lambda: False)()
    why = beyond_causal(model) if settable else "takes no attention but its own"
    if why:
        raise InputError(
            f"{asked_by}: {type(model).__name__} {why}, so samples laid in one row would see each other; use "
            "train.padding_free=false and method.schedule=three_pass"
        )


def _register(own: str) -> str:
    """Registers `own` with samples apart, under a name of its own; returns the name."""
    name = f"{own}_by_segment"
    if name not in ALL_ATTENTION_FUNCTIONS:

        def by_segment(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
            segments: Segments | None = None, **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
            if segments is None and _is_unread(attention_mask, key):
                raise InputError(f"{type(module).__name__} is not told which samples lie in a row")
            if segments is None or segments.layout is None:
                mask = attention_mask if segments is None else None
                return _own_attention(own, module)(module, query, key, value, mask, **kwargs)
            return _attention(module, query, key, value, segments, segments.layout, **kwargs), None

        AttentionInterface.register(name, by_segment)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _own_attention(own: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that serves `own`; eager attention is not registered, it stands beside the module."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    return function


def _attention(
    module: nn.Module,
    query: Tensor,  # [1, H, row, d]
    key: Tensor,  # [1, H_kv, row, d]
    value: Tensor,
    segments: Segments,
    layout: Layout,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """[1, row, H, d]: each run of the layout sees its chain whole and itself causally."""
    if s_aux is not None or position_bias is not None:
        raise InputError(
            f"{type(module).__name__} adds sinks or a position bias to its scores, which rows of samples lack; use "
            "train.padding_free=false and method.schedule=three_pass"
        )
    key, value = segments.seen_by(int(getattr(module, "layer_idx", 0)), key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = None if sliding_window is None or layout.longest <= sliding_window else sliding_window
    plain = window is None and not softcap and dropout == 0.0
    if query.device.type == "cpu" and plain and query.shape[-1] == value.shape[-1]:
        return merged_attention(query, key, value, layout, scale)
    attend = _capped_attention if softcap else _sdpa
    if query.device.type != "cpu" and any(layout.chains) and layout.tokens * sum(layout.all_lengths) <= _LARGEST_MASK:
        seen = layout.visible(window, query.device)
        return attend(query, key, value, seen, dropout, scale, softcap).transpose(1, 2).contiguous()
    keys, values = key.split(layout.all_lengths, 2), value.split(layout.all_lengths, 2)
    outputs = []
    for number, q in enumerate(query.split(layout.lengths, 2)):
        runs = (*layout.chain(number), len(layout.kept) + number)
        k, v = (torch.cat([parts[j] for j in runs], 2) for parts in (keys, values))
        alone = window is None and not softcap and k.shape[2] == q.shape[2]
        mask = None if alone else banded(q.shape[2], k.shape[2], window, q.device)
        outputs.append(attend(q, k, v, mask, dropout, scale, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float, _: float | None
) -> Tensor:
    """Causal where there is no mask, which lets SDPA take its flash kernel."""
    dtype = q.dtype
    if q.device.type == "cpu":  # PyTorch's bfloat16 backward takes twice as long there on short samples
        q, k, v = q.float(), k.float(), v.float()
    grouped = mask is None
    if not grouped:  # with a mask CUDA has grouped heads in its math kernel alone, which keeps all the scores
        k, v = _for_each_head(k, q), _for_each_head(v, q)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    ).to(dtype)


def _for_each_head(kv: Tensor, q: Tensor) -> Tensor:
    """[1, H, row, d] of keys or values [1, H_kv, row, d]."""
    return kv.repeat_interleave(q.shape[1] // kv.shape[1], dim=1)


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float, softcap: float | None
) -> Tensor:
    """softmax(softcap * tanh(q k^T * scale / softcap)) v (Gemma 2): SDPA has no place for the cap."""
    assert softcap is not None and mask is not None
    k, v = _for_each_head(k, q), _for_each_head(v, q)
    scores = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), p=dropout)
    return weights @ v
