"""What a rank gathers and reduces at ZeRO 3, counted by benchmarks/traffic.py on two real ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import CONTEXT

# Sweeps over the weights beside those of sft, of two micro-batches: (gathered, gradients reduced).
SWEEPS = {
    "sft": (1, 1),
    "sft_tree": (1, 1),
    "anit_naive": (3, 2),
    "anit": (2, 1),
    "anit_clean": (2, 2),
    "anit_pipelined": (3 / 2, 1),  # the first attack by itself, the second in the first training pass
    # A trunk needs no head, and its backward pass nothing of the last layer behind its keys and values.
    "anit_tree": (2.843, 1.797),
}


@pytest.mark.slow
@pytest.mark.matrix
def test_passes_cost_the_sweeps_they_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import on_ranks
    import traffic

    monkeypatch.setattr(on_ranks, "multiprocessing", SimpleNamespace(get_context=lambda method: CONTEXT))
    traffic.write_inputs(tmp_path, samples=16)
    rows = traffic.measure(tmp_path, list(SWEEPS), ranks=2, micro_batches=2, padding_free=False)
    traffic.show(rows)
    # Forward and backward; the table, 15% of the weights, in each for the head and in the forward for the embeddings.
    assert rows[0]["sweeps_per_micro_batch"] == pytest.approx(2.153, rel=0.01)
    for row in rows:
        counted = (row["gathered_ratio_to_sft"], row["reduced_ratio_to_sft"])
        assert counted == pytest.approx(SWEEPS[row["mode"]], rel=0.01), row["mode"]
        # ZeRO-3 fetches ahead by the order of modules it has seen; no method may change it within a step.
        assert row["trace_invalidations"] == 0, row["mode"]
