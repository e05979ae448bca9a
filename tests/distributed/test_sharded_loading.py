"""At ZeRO-3 a model is loaded shard by shard: no rank ever holds a whole copy of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forked import Program
from ranks import free_port

from anit_ds.tiny import tiny_model

PROGRAM = Path(__file__).with_name("loading_program.py")
MEBIBYTE = 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_rank_s_peak_is_below_one_copy(tmp_path: Path) -> None:
    model = tmp_path / "model"
    width = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
    tiny_model(layers=20, head_dim=64, **width).to(torch.bfloat16).save_pretrained(model, max_shard_size="20MB")
    assert len(list(model.glob("*.safetensors"))) > 3
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        Program(PROGRAM, model, output=tmp_path / f"rank{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        assert process.wait() == 0, process.said()
        found = json.loads(process.said().splitlines()[-1])
        peak, copy = (found[name] / MEBIBYTE for name in ("peak", "one_copy"))
        print(f"rank {rank}: peak {peak:.0f} MiB, one copy {copy:.0f} MiB")
        assert found["held"] < 0.51 * found["one_copy"]
        assert 0.4 * copy < peak < 0.8 * copy
