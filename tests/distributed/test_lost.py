"""One rank's loss is NaN: no rank takes the step, and the run is the one that a single rank makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
from safetensors.torch import load_file

from anit_ds.config import Config


@pytest.mark.slow
def test_no_rank_takes_a_step_that_one_of_them_lost(
    make_config: Callable[..., Config], broken_token: Path, broken_text: Path
) -> None:
    settings = {"model.name_or_path": str(broken_token), "data.path": str(broken_text), "train.micro_batch": 4}
    configs = [
        make_config(f"{n}-ranks-{stage}", **settings, deepspeed={"zero_optimization": {"stage": stage}})
        for n, stage in ((1, 0), (2, 0), (2, 2), (2, 3))
    ]
    ranks.run(1, configs[0])
    ranks.run(2, *configs[1:])
    weights = [load_file(Path(config.out) / "adapter" / "adapter_model.safetensors") for config in configs]
    summaries = [json.loads((Path(config.out) / "summary.json").read_text()) for config in configs]
    assert [summary["nonfinite_steps"] for summary in summaries] == [2] * 4
    lines = [(Path(config.out) / "metrics.jsonl").read_text().splitlines() for config in configs]
    lost = [[step["step"] for step in map(json.loads, some) if step.get("loss/clean", 0) is None] for some in lines]
    assert lost == [lost[0]] * 4 and len(lost[0]) == 2
    for other in weights[1:]:
        assert max((other[name] - weights[0][name]).abs().max().item() for name in other) <= 1e-5
