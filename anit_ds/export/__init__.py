"""What leaves a run: its adapter or a merged model, how it wants to be asked, and a card that says what it is."""

from __future__ import annotations

from anit_ds.export.card import Measured, write_card
from anit_ds.export.hub import push, refuse_push
from anit_ds.export.prompt import write_prompt
from anit_ds.export.weights import export_best, export_merged, run_with_weights

__all__ = [
    "Measured", "export_best", "export_merged", "push", "refuse_push", "run_with_weights", "write_card",
    "write_prompt",
]  # fmt: skip
