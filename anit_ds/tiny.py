"""A random tiny causal LM with a byte tokenizer, saved like any checkpoint: for tests and for trying a cluster out.

    python -m anit_ds.tiny OUT [--family llama|qwen2|gemma|gemma2|gemma3_text]

107 thousand parameters, a LoRA step in milliseconds on a CPU. It learns nothing worth having; it runs every line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gemma3_text")
_EOS, _PAD = "<eos>", "<pad>"


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, <pad> = 0, <eos> = 1: nothing to train, and any Unicode goes through."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([_PAD, _EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_EOS, pad_token=_PAD, model_max_length=2048
    )


def tiny_model(
    family: str = "llama", *, seed: int = 0, layers: int = 2, **changes: Any
) -> transformers.PreTrainedModel:
    """A random model of a family in float32; `changes` override fields of its configuration."""
    fields: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    if family == "qwen2":
        del fields["head_dim"]
    config = transformers.AutoConfig.for_model(family, **{**fields, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config)


def tiny_pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask, labels [2, 26] of two samples of 22 and 26 tokens that begin alike, padded on the right."""
    rng = torch.Generator().manual_seed(2)
    ids, mask, labels = torch.zeros(2, 26, dtype=torch.long), torch.zeros(2, 26), torch.full((2, 26), -100)
    common = torch.randint(3, 512, (12,), generator=rng)
    for row, length in enumerate((22, 26)):
        ids[row, :length] = torch.cat([common, torch.randint(3, 512, (length - 12,), generator=rng)])
        mask[row, :length], labels[row, length - 3 : length] = 1, ids[row, length - 3 : length]
    return ids, mask, labels


def save_tiny(folder: Path | str, family: str = "llama", *, seed: int = 0) -> Path:
    """Model and tokenizer in a folder that `model.name_or_path` can name."""
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    arguments = parser.parse_args()
    print(save_tiny(arguments.out, arguments.family))
