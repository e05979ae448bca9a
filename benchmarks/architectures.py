"""Which of transformers' causal models compute in a run's rows what they compute for a sample by itself.

    python benchmarks/architectures.py --json results/models/architectures.json     # all, in half an hour
    python benchmarks/architectures.py --models llama,nemotron

Each model is built tiny, with random weights and windows of eight tokens, and rehearsed as a run of it would be
(anit_ds/adversarial/rehearsal.py) on two samples that begin alike. `packed`, `tree` and `padded` are how far its logits
are from those of whole samples, as a share of their norm, or why it takes no such rows; a padded batch has no mask. A
model that cannot be built so small says why in `built`.
"""

from __future__ import annotations

import argparse
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from measuring import show, write_json
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from anit_ds.adversarial import Batch, PerturbableLM, PrefixTreeLM
from anit_ds.adversarial.rehearsal import distance
from anit_ds.errors import InputError, first_line
from anit_ds.tiny import tiny_model, tiny_pair

WAYS = ("packed", "tree", "padded")
# The sizes of anit_ds.tiny by the names that other families have for them, and no dropout.
SIZES: dict[str, Any] = {
    "sliding_window": 8, "is_decoder": True, "moe_intermediate_size": 32,
    **dict.fromkeys(("n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("n_layer", "num_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("n_head", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("n_inner", "ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group"), 1), "num_experts_per_tok": 2,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "qk_nope_head_dim"), 8), "qk_rope_head_dim": 4,
    **dict.fromkeys(("dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout"), 0.0),
}  # fmt: skip
_KEYS_AS_IN_MLA = {"head_dim": 4, "num_key_value_heads": 4}
_LARGEST, _SECONDS = 60_000_000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="model types, separated by commas; by default all causal models")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    kinds = asked.models.split(",") if asked.models else sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    rows = []
    for kind in kinds:
        rows.append(tried(kind))
        print(*rows[-1].values(), sep=" | ", flush=True)
    show(rows, ("model", "built", *WAYS))
    if asked.json:
        write_json(asked.json, {"transformers": transformers.__version__, "rows": rows})


def tried(kind: str) -> dict[str, Any]:
    """A row of the table."""
    model, why = _built(kind)
    if model is None:
        return {"model": kind, "built": why, **dict.fromkeys(WAYS)}
    return {"model": kind, "built": "yes", **{way: _distance(model, way) for way in WAYS}}


def _built(kind: str) -> tuple[nn.Module | None, str]:
    """The model in float32, or None and why not."""
    why = ""
    for more in ({}, _KEYS_AS_IN_MLA):
        try:
            with _within(_SECONDS):
                usual = transformers.AutoConfig.for_model(kind)
                sizes = {key: value for key, value in SIZES.items() if hasattr(usual, key)}
                model = tiny_model(kind, tie_word_embeddings=False, **{**sizes, **more}).eval()
                if sum(weight.numel() for weight in model.parameters()) > _LARGEST:
                    return None, "its parts keep their size"
                torch.manual_seed(1)
                for weight in model.parameters():
                    if weight.dim() > 1:
                        nn.init.normal_(weight, std=0.1)  # of the usual 0.02 such small layers would move nothing
                with torch.no_grad():
                    model(input_ids=pair().input_ids, use_cache=False)
                return model, "yes"
        except Exception as error:  # a hundred configurations, each with checks of its own
            why = f"{type(error).__name__}: {first_line(error)}"[:160]
    return None, why


def _distance(model: nn.Module, way: str) -> float | str:
    lm = None
    try:
        lm = PrefixTreeLM(model) if way == "tree" else PerturbableLM(model)
        if way == "padded":
            lm.spare_masks()
        with torch.no_grad(), _within(_SECONDS):
            return distance(lm, lm.prepare(pair().packed() if way == "packed" else pair()))
    except (InputError, RuntimeError, TimeoutError) as error:
        return first_line(error)[:160]
    finally:
        if lm is not None:
            lm.remove()


def pair() -> Batch:
    """Two samples that begin alike, padded on the right as the trainer pads them."""
    return replace(Batch.from_labels(*tiny_pair()), right_padded=True)


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    main()
