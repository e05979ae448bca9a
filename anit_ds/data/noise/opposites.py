"""Opposite instructions: from the table beside the instructions, or written once by a chat model and kept on disk."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING

from anit_ds.data.distortion.service import client, explained_errors
from anit_ds.data.instructions import Instructions, Version
from anit_ds.errors import ServiceError
from anit_ds.files import user_cache, write_atomically

if TYPE_CHECKING:
    from anit_ds.config import NoiseConfig

REQUEST = (
    "Below is an instruction for a language-understanding task. Write one instruction of about the same length and "
    "style that can be confused with it but asks for something else, such as the contrary, another property of the "
    "same text, or another order. Answer with that instruction only, on one line.\n\n{instruction}"
)
TIMEOUT = 60.0
"""Seconds per request."""
RETRIES = 8


def opposites_for(instructions: Instructions, version: Version, noise: NoiseConfig) -> list[str]:
    """The opposites that the noise `opposite` draws from: the table's, or with `noise.opposites: chat` the model's.

    The chat model is asked once for each paraphrase, at temperature 0, and only when `noise.kind` is `opposite`.
    Raises InputError for a refused request or a missing key, ServiceError for a service that keeps failing.
    """
    if noise.opposites == "table" or noise.kind != "opposite":
        return instructions.opposites(version)
    return [_written(instruction, noise.chat_model, noise.base_url) for instruction in instructions.texts(version)]


def _written(instruction: str, model: str, base_url: str | None) -> str:
    request = REQUEST.format(instruction=instruction)
    asked = json.dumps([base_url, model, request]).encode()
    kept = user_cache() / "opposites" / f"{blake2b(asked, digest_size=16).hexdigest()}.txt"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    with explained_errors(f"an opposite instruction by {model}"):
        answer = client(base_url, timeout=TIMEOUT, max_retries=RETRIES).chat.completions.create(
            model=model, temperature=0, messages=[{"role": "user", "content": request}]
        )
    text = " ".join((answer.choices[0].message.content or "").split())
    if not text or text == instruction:
        raise ServiceError(f"{model} wrote no opposite of {instruction!r}; use noise.opposites: table")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, text)
    return text
