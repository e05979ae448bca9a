"""How fast NRM's kernels are; prints a table and, with --json FILE, writes it.

python benchmarks/kernel.py           # a GPU: a correctness gate, then medians against eager PyTorch, torch.compile
                                      # and a device copy; no GPU: the ahead-of-time table and the CPU reference
python benchmarks/kernel.py --share   # the reference's share of an ANIT step on a CPU, on a random model of
                                      # SmolLM2-135M's shape
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from measuring import median_ms, show, write_json
from torch import Tensor

from anit_kernels import nrm_init, nrm_reference, nrm_step
from anit_kernels.interface import Ball, Samples

# (B, T, D): SmolLM2's width from one small batch to a long one, then the widths of 1B to 70B models.
GPU_SHAPES = [(8, 64, 576), (32, 512, 576), (8, 512, 2048), (32, 512, 2048), (8, 512, 4096), (8, 2048, 4096),
              (4, 2048, 8192)]  # fmt: skip
CPU_SHAPES = [(8, 64, 576), (2, 256, 576), (8, 512, 576), (8, 512, 2048)]
# Inputs are rotated over this many bytes, more than the L2 of any GPU, so that no run finds its input there.
ROTATED_BYTES = 512 << 20
ALPHA = 0.3
BALL: Ball = "frobenius"

Arguments = tuple[Tensor, Tensor, dict[str, Any]]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Arguments:
    """Gradient, embeddings and the samples' arguments of one right-padded batch."""
    rows, length, width = shape
    lengths = torch.randint(length // 2, length + 1, (rows, 1), device=device)
    lengths[0] = length
    attended = torch.arange(length, device=device) < lengths
    samples: dict[str, Any] = {
        "mask": attended & (torch.arange(length, device=device) < lengths - 4),
        "attended": attended,
        "seed": 1,
        "step": 2,
        "sample_ids": torch.arange(rows, device=device),
        "eps": 1.0,
        "beta": torch.full((rows,), 0.3, device=device),
    }
    grad, embeddings = (torch.randn(rows, length, width, device=device).to(dtype) for _ in range(2))
    return grad, embeddings, samples


def eager_step(grad: Tensor, embeddings: Tensor, delta0: Tensor, scope: Tensor, eps: float) -> Tensor:
    """What one writes by hand: delta0 kept from the attack, whole-tensor operations in float32."""
    g = grad.float() * scope
    norm = g.flatten(1).norm(dim=1).clamp(min=1e-8)[:, None, None]
    delta = delta0 + ALPHA * g / norm
    size = delta.flatten(1).norm(dim=1)[:, None, None]
    return (embeddings.float() + delta * (eps / size).clamp(max=1.0)).to(embeddings.dtype)


def gate(grad: Tensor, embeddings: Tensor, samples: dict[str, Any]) -> None:
    """Stop the benchmark where what runs on this device is not what the reference computes on a CPU."""
    moved: dict[str, Any] = {n: value.cpu() if isinstance(value, Tensor) else value for n, value in samples.items()}
    here = Samples(**moved)
    zero = torch.zeros_like(embeddings, dtype=torch.float32)
    if not torch.equal(nrm_init(zero, **samples).cpu(), nrm_reference.nrm_init(zero.cpu(), here)):
        raise SystemExit("the gate is red: delta0 is not the reference's to the bit")
    x1, stats = nrm_step(grad, embeddings, **samples, alpha=ALPHA, ball=BALL)
    expected, expected_stats = nrm_reference.nrm_step(grad.cpu(), embeddings.cpu(), here, ALPHA, BALL)
    # Values that differ in the last bits of float32 may round to neighbours.
    allowed = torch.finfo(embeddings.dtype).eps * expected.abs() + 4e-6 * float(embeddings.abs().max())
    error = (x1.cpu() - expected).abs()
    norms_agree = torch.allclose(stats.delta1_norm.cpu(), expected_stats.delta1_norm, rtol=1e-5)
    if not (error <= allowed).all() or not norms_agree:
        raise SystemExit(f"the gate is red: x1 is off by {float(error.max()):.3g}")


def graph_ms(calls: Sequence[Callable[[], Any]], repeats: int = 50) -> float:
    """The median time of one of these calls on the GPU, without Python's launches between them.

    A launch of a kernel takes Python and the driver tens of microseconds, often longer than the kernel runs, and events
    around a call would measure that. So all calls are captured in one CUDA graph and its replays timed.
    """
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for call in calls:  # Compiles, and fills the allocator: neither can be captured.
            call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        for call in calls:
            kept.append(call())  # A result that is freed would give its memory, and its place in L2, to the next call.
    graph.replay()
    times = []
    for _ in range(repeats):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / len(calls))
    return statistics.median(times)


def on_gpu(dtype: torch.dtype, device: str = "cuda") -> list[dict[str, Any]]:
    """Medians of every contender for each shape, as ms, GB/s of what a step must move, and share of a device copy."""
    compiled = torch.compile(eager_step, dynamic=False)
    rows = []
    for shape in GPU_SHAPES:
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        batches = [inputs(shape, dtype, device) for _ in range(max(2, min(32, ROTATED_BYTES // (2 * size))))]
        gate(*batches[0])
        delta0 = nrm_init(torch.zeros_like(batches[0][1], dtype=torch.float32), **batches[0][2])

        def by_hand(batch: Arguments, step: Callable[..., Tensor], noise: Tensor = delta0) -> Tensor:
            return step(batch[0], batch[1], noise, batch[2]["mask"][..., None], batch[2]["eps"])

        contenders: dict[str, tuple[Callable[[Arguments], Any], int]] = {
            "copy": (lambda b: b[1].clone(), 2),
            "nrm_init": (lambda b: nrm_init(b[1], **b[2]), 2),
            "nrm_step": (lambda b: nrm_step(b[0], b[1], **b[2], alpha=ALPHA, ball=BALL), 4),
            "eager step": (partial(by_hand, step=eager_step), 4),
            "compiled step": (partial(by_hand, step=compiled), 4),
        }
        copy_rate = 0.0
        for name, (run, accesses) in contenders.items():
            milliseconds = graph_ms([partial(run, batch) for batch in batches])
            rate = accesses * size / milliseconds / 1e6
            copy_rate = rate if name == "copy" else copy_rate
            rows.append({"shape": shape, "what": name, "ms": milliseconds, "gb_s": rate, "of_copy": rate / copy_rate})
    return rows


def on_cpu(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Medians of the reference's two functions."""
    rows = []
    for shape in CPU_SHAPES:
        grad, embeddings, samples = inputs(shape, dtype, "cpu")
        timed: dict[str, Callable[[], Any]] = {
            "nrm_init": partial(nrm_init, embeddings, **samples),
            "nrm_step": partial(nrm_step, grad, embeddings, **samples, alpha=ALPHA, ball=BALL),
        }
        for name, run in timed.items():
            rows.append({"shape": shape, "what": name, "ms": median_ms(run, repeats=10)})
    return rows


def share(dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """The reference's two calls beside the model's passes of one ANIT step, 8 samples of 64 tokens."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = (8, 64, 576)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(cast(Any, LlamaForCausalLM(config)).to(dtype), lora)
    _, _, samples = inputs(shape, dtype, "cpu")
    tokens = torch.randint(0, config.vocab_size, shape[:2])
    attention = samples["attended"].long()
    # Logits of eight answer tokens alone: the least an ANIT step costs, so the share is at its largest.
    answer = slice(shape[1] - 8, shape[1])
    embeddings = model.get_input_embeddings()(tokens).detach()

    def loss(x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        hidden = model.get_base_model().model(inputs_embeds=x, attention_mask=mask).last_hidden_state
        logits = model.get_base_model().lm_head(hidden[:, answer].contiguous()).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def attack() -> Tensor:
        x0 = embeddings.clone().requires_grad_()
        return torch.autograd.grad(loss(x0, tokens[:, answer], attention), x0)[0]

    def train() -> None:
        joined = torch.cat([embeddings, embeddings])
        loss(joined, tokens[:, answer].repeat(2, 1), attention.repeat(2, 1)).backward()
        model.zero_grad(set_to_none=True)

    grad = attack()
    parts: dict[str, tuple[Callable[[], Any], int]] = {
        "attack pass": (attack, repeats),
        "joined training pass": (train, repeats),
        "nrm_init": (lambda: nrm_init(embeddings, **samples), 10 * repeats),
        "nrm_step": (lambda: nrm_step(grad, embeddings, **samples, alpha=ALPHA, ball=BALL), 10 * repeats),
    }
    rows: list[dict[str, Any]] = [
        {"what": name, "ms": median_ms(run, repeats=count)} for name, (run, count) in parts.items()
    ]
    total = sum(row["ms"] for row in rows)
    for row in rows:
        row["share"] = row["ms"] / total
    reference = sum(row["share"] for row in rows[2:])
    print(f"the reference's share of an ANIT step: {100 * reference:.2f}%")
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", action="store_true", help="the reference's share of an ANIT step on this CPU")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5, help="steps to take the median of, with --share")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    if arguments.share:
        rows = share(dtype, arguments.repeats)
    elif torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        rows = on_gpu(dtype)
    else:
        print("No GPU here: the kernels' machine code, compiled ahead of time, then the CPU reference.\n", flush=True)
        subprocess.run([sys.executable, "-m", "anit_kernels.aot", "--dtype", "bf16", "--main"], check=True)
        print(f"\nThe reference on this CPU ({torch.get_num_threads()} threads):\n")
        rows = on_cpu(dtype)
    show(rows)
    if arguments.json:
        write_json(arguments.json, {"dtype": arguments.dtype, "rows": rows})


if __name__ == "__main__":
    main()
