"""How a step's time and memory grow: with the length of a sample, with the micro-batch, and with ranks.

    python benchmarks/scaling.py --model MODEL --json results/step_cost/scaling.json
    python benchmarks/scaling.py --model MODEL --ranks 1 2     # real processes on ZeRO 1, also of this machine's cores
    python benchmarks/scaling.py --model MODEL --curve         # the tree against the context's share

Samples are random tokens, all of one length, the last eight of them the answer. A slope is that of a straight line
through log(cost) against log(size): 1 means that twice the size costs twice as much. What the weights do grows linearly
in both directions. Attention grows with the square of the length: a layer of width H and P weights takes 4 T^2 H
operations for its scores against 2 T P, on SmolLM2-135M (576 and 3.5 million) a third of the work at T = 1024 and half
at 3100, so a slope above 1 over the lengths is attention's. What does not grow at all, such as the optimizer and
starting thousands of small operators, pulls the slope of small sizes below 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import peak_mb_of, show, spread, time_of, write_json
from modes import MODES, Foundation, Mode, Stepper, run_config
from on_ranks import on_ranks

from anit_ds.data.prompts import Encoded
from anit_ds.errors import InputError

LENGTHS, MICRO_BATCHES = (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16)
SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_BETWEEN = 2, 128  # the micro-batch of the lengths, and the length of the micro-batches
_ANSWER, _AFTER_INSTRUCTION = 8, 3
_CURVE = ("sft_last", "sft_last_tree", "anit_last", "anit_last_tree")


def synthetic(rows: int, length: int, *, context: int, vocabulary: int, alike: int = 0) -> list[Encoded]:
    """Samples of `length` tokens whose instruction starts after `context` tokens and ends shortly before the answer.

    The first `alike` tokens of all samples are the same; the text lies between them and the instruction.
    """
    rng = np.random.default_rng([rows, length, context])
    drawn = rng.integers(3, vocabulary, (rows, length))
    drawn[:, :alike] = drawn[0, :alike]
    ids = drawn.tolist()
    instruction = (context, max(context + 1, length - _ANSWER - _AFTER_INSTRUCTION))
    spans = instruction, (alike, context)
    return [Encoded(key, row[:-_ANSWER], row[-_ANSWER:], *spans, 0.0, "random") for key, row in enumerate(ids)]


def measure(steppers: Sequence[Stepper], batches: Sequence[list[Encoded]], steps: int) -> list[dict[str, Any]]:
    """A row for each batch and mode, the modes taking turns; one step before the clock measures memory."""
    for stepper in steppers:
        stepper.settle()
        # What PyTorch allocates once for all sizes is no size's memory.
        stepper.gradients(stepper.prepare(batches[0], beta=0.3))
    rows = []
    for samples in batches:
        ready = [stepper.prepare(samples, beta=0.3) for stepper in steppers]
        peaks = []
        for stepper, batch in zip(steppers, ready, strict=True):
            peaks.append(peak_mb_of(lambda: stepper.step(batch)))  # noqa: B023
        costs = [[time_of(lambda: s.step(b)) for s, b in zip(steppers, ready, strict=True)] for _ in range(steps)]  # noqa: B023
        for number, stepper in enumerate(steppers):
            own = [turn[number] for turn in costs]
            rows.append({
                "mode": stepper.mode.name,
                "micro_batch": len(samples),
                "length": len(samples[0]),
                "cpu_seconds": statistics.median(c.cpu for c in own),
                "wall_seconds": statistics.median(c.wall for c in own),
                "iqr": spread([c.counts for c in own]),
                "ratio_to_sft": statistics.median(turn[number].counts / turn[0].counts for turn in costs),
                "peak_mb": peaks[number],
            })  # fmt: skip
        print(f"{len(samples)} x {len(samples[0])} done", file=sys.stderr, flush=True)
    return rows


def slopes(rows: Sequence[dict[str, Any]], size: str, fixed: str, value: int) -> list[dict[str, Any]]:
    """The exponents with which time and memory grow along `size`, over all its values and over the upper half."""
    result = []
    time = "wall_seconds" if torch.cuda.is_available() else "cpu_seconds"
    for mode in dict.fromkeys(row["mode"] for row in rows):
        own = sorted((r for r in rows if r["mode"] == mode and r[fixed] == value), key=lambda row: row[size])
        found: dict[str, Any] = {"mode": mode, "along": size}
        for name, cost in (("time", time), ("memory", "peak_mb")):
            for which, part in ((f"{name}_slope", own), (f"{name}_slope_of_upper_half", own[len(own) // 2 :])):
                found[which] = slope([r[size] for r in part], [r[cost] for r in part])
        result.append(found)
    return result


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least squares through log(cost) against log(size); NaN for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def growth(arguments: argparse.Namespace, foundation: Foundation) -> dict[str, Any]:
    """Time and memory of sft, anit and anit_clean along both directions."""
    steppers = [Stepper(mode, foundation) for mode in chosen(("sft", "anit", "anit_clean"))]
    micro_batch, length = _BETWEEN
    sizes = {(micro_batch, t): None for t in arguments.lengths} | {(b, length): None for b in arguments.micro_batches}
    if arguments.full:
        sizes = {(b, t): None for b in arguments.micro_batches for t in arguments.lengths}
    batches = [synthetic(b, t, context=0, vocabulary=foundation.vocabulary) for b, t in sizes]
    rows = measure(steppers, batches, arguments.steps)
    fits = slopes(rows, "length", "micro_batch", micro_batch) + slopes(rows, "micro_batch", "length", length)
    return {"rows": rows, "slopes": fits}


def curve(arguments: argparse.Namespace, foundation: Foundation) -> dict[str, Any]:
    """Cost relative to sft of batches of one total length, against the share of tokens before the instruction.

    Half of these tokens are the same in all samples, as question, format and options are.
    """
    steppers = [Stepper(mode, foundation) for mode in chosen(_CURVE)]
    rows, length = 8, 128
    found = []
    for share in SHARES:
        context = round(share * length)
        samples = synthetic(rows, length, context=context, vocabulary=foundation.vocabulary, alike=context // 2)
        found += [{"context_share": share, **row} for row in measure(steppers, [samples], arguments.steps)]
    return {"rows": found, "slopes": []}


def chosen(names: Sequence[str]) -> list[Mode]:
    """Modes by name. Raises InputError for one that is not there."""
    known = {mode.name: mode for mode in MODES}
    if missing := [name for name in names if name not in known]:
        raise InputError(f"there is no mode {', '.join(missing)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def over_ranks(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The same micro-batch on each of several ranks, through DeepSpeed at ZeRO 1: what a rank more costs.

    Each rank is a process of its own with one thread; the time is rank 0's wall clock, collectives included.
    """
    rows: list[dict[str, Any]] = []
    for ranks in arguments.ranks:
        rows += on_ranks(ranks, _rows_of_rank, ranks, settings, arguments.steps)
    return {"rows": with_efficiency(rows), "slopes": []}


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their tokens per second, and one rank's time over theirs; None where one rank was not measured."""
    for row in rows:
        alone = next((r["wall_seconds"] for r in rows if r["mode"] == row["mode"] and r["ranks"] == 1), None)
        row["tokens_per_second"] = row["ranks"] * row["micro_batch"] * row["length"] / row["wall_seconds"]
        row["efficiency"] = None if alone is None else alone / row["wall_seconds"]
    return rows


def _rows_of_rank(ranks: int, settings: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    from anit_ds.ranks import distributed
    from anit_ds.training.batching import Split
    from anit_ds.training.ds_config import deepspeed_config
    from anit_ds.training.engine import build_engine

    distributed.init()
    foundation = Foundation.for_this_device(settings)
    rows = []
    for mode in chosen(("sft", "anit", "anit_clean")):
        micro_batch, length = _BETWEEN
        mode = replace(mode, train={**mode.train, "micro_batch": micro_batch, "global_batch": ranks * micro_batch})
        stepper = Stepper(mode, foundation)
        config = run_config(settings, mode)
        stepper.passes.lm.remove()
        ds_config = deepspeed_config(config, split=Split.of(config.train, ranks), dtype=foundation.dtype)
        lm = stepper.passes.lm = build_engine(stepper.passes.lm.module, config, ds_config)
        samples = synthetic(micro_batch, length, context=0, vocabulary=foundation.vocabulary)
        batch = stepper.prepare(samples, beta=0.3)
        step = _engine_step(stepper, lm.engine, batch.inputs)
        step()
        costs = []
        for _ in range(steps):
            distributed.barrier()
            costs.append(time_of(step))
        rows.append({
            "mode": mode.name,
            "ranks": ranks,
            "micro_batch": micro_batch,
            "length": length,
            "cpu_seconds": statistics.median(c.cpu for c in costs),
            "wall_seconds": statistics.median(c.wall for c in costs),
            "iqr": spread([c.wall for c in costs]),
        })  # fmt: skip
    return rows


def _engine_step(stepper: Stepper, engine: Any, batches: Any) -> Callable[[], None]:
    def step() -> None:
        stepper.passes.backward(batches)
        engine.step()

    return step


def draw(result: dict[str, Any], file: Path, along: Sequence[str]) -> None:
    """A panel for each direction: cost against size, a line for each mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"]
    panels = [(size, cost) for size in along for cost in ("cpu_seconds", "peak_mb")]
    if along == ("context_share",):
        panels = [("context_share", "ratio_to_sft")]
    elif along == ("ranks",):
        panels = [("ranks", "wall_seconds"), ("ranks", "tokens_per_second")]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), layout="constrained", squeeze=False)
    fixed = {"length": ("micro_batch", _BETWEEN[0]), "micro_batch": ("length", _BETWEEN[1])}
    for (size, cost), panel in zip(panels, axes[0], strict=True):
        key, value = fixed.get(size, (size, None))
        for mode in dict.fromkeys(row["mode"] for row in rows):
            own = [row for row in rows if row["mode"] == mode and value in (None, row[key])]
            own.sort(key=lambda row: row[size])  # noqa: B023
            panel.plot([row[size] for row in own], [row[cost] for row in own], marker="o", label=mode)
        if size in fixed:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
        panel.set_xlabel(size.replace("_", " "))
        panel.set_ylabel(cost.replace("_", " "))
        panel.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=MICRO_BATCHES)
    parser.add_argument("--full", action="store_true", help="every length with every micro-batch")
    parser.add_argument("--ranks", type=int, nargs="+", help="instead: the same micro-batch on this many ranks")
    parser.add_argument("--curve", action="store_true", help="instead: the tree against the context's share")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each mode at each size")
    parser.add_argument("--json", type=Path, help="also write the rows here, and a chart beside them")
    arguments = parser.parse_args(argv)
    settings = {"model": {"name_or_path": arguments.model}}
    try:
        if arguments.ranks:
            along: tuple[str, ...] = ("ranks",)
            result = over_ranks(arguments, settings)
        else:
            foundation = Foundation.for_this_device(settings)
            how, along = (curve, ("context_share",)) if arguments.curve else (growth, ("length", "micro_batch"))
            result = how(arguments, foundation)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    show(result["rows"])
    if result["slopes"]:
        print()
        show(result["slopes"])
    if arguments.json:
        write_json(arguments.json, {"model": Path(arguments.model).name, **result})
        draw(result, arguments.json.with_suffix(".png"), along)


if __name__ == "__main__":
    main()
