"""Whether a model is plainly causal: only then can samples share a row, or go on from a prefix that is kept."""

from __future__ import annotations

from typing import Any

from torch import nn

# A window is a mask, which rows and kept prefixes respect; a chunk's moves with a token's place in its row.
_LAYERS = {"full_attention", "sliding_attention"}


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def beyond_causal(model: nn.Module) -> str | None:
    """What a causal LM's layers do beside causal attention with windows, as the end of a sentence about the model; None
    where its configuration names nothing."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if odd := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS):
        return f"has {', '.join(odd)} layers"
    if getattr(model, "_is_stateful", False) or getattr(config, "layers_block_type", None):
        return "keeps a state that is no list of keys and values"
    if getattr(config, "attention_chunk_size", None) or getattr(config, "use_bidirectional_attention", False):
        return "has attention that is more than causal with windows"
    return None
