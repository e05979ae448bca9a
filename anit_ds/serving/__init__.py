"""A run behind HTTP: OpenAI's chat completions, `/predict` with probabilities and scores, and a page to try a text."""

from __future__ import annotations

from anit_ds.serving.app import build_app

__all__ = ["build_app"]
