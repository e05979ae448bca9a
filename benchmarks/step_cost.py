"""What a training step costs: TRL, Hugging Face, sft, and every adversarial method, on the same real batches.

    python benchmarks/step_cost.py --data DATA --json results/step_cost/step_cost.json
    python benchmarks/step_cost.py --data DATA --datasets sst2 --modes trl,sft,anit --steps 3

DATA holds a folder for each data set, as `data.path` of a run names it. Modes are interleaved round by round, each
round on another batch; a row holds medians over the rounds, and a ratio is the median of the rounds' ratios. A round
before the clock starts measures memory. Before any of it the gate: in float32 every mode that promises another mode's
gradients must give them, or nothing is timed. All modes run without dropout, so that they compute the same thing, with
the same attention and, but for trl_defaults, without gradient checkpointing. modes.py says what a step is.

peak_mb is a step's largest memory above what is held before it (weights, adapters, AdamW's moments). ratio_to_trl and
ratio_to_sft compare CPU time; on a GPU, where this has not run yet, the time until the device is done. TRL 1.16 scores
only labelled tokens where it has a device for Triton and every token elsewhere, so expect higher ratios to it on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from measuring import Cost, peak_mb_of, show, spread, time_of, write_json
from modes import MODES, Foundation, Mode, Stepper, Workload
from torch import Tensor

from anit_ds.errors import InputError

_GATE_ROWS = 4
_TOLERANCE = 1e-4
_BATCHES = 4  # different ones of a data set; more rounds go through them again
COLUMNS = ("dataset", "mode", "ratio_to_trl", "ratio_to_sft", "cpu_seconds", "cpu_iqr", "wall_seconds", "peak_mb",
           "tokens_per_second", "padding_share")  # fmt: skip
AVERAGED = ("ratio_to_trl", "ratio_to_sft", "cpu_seconds", "wall_seconds", "peak_mb", "tokens_per_second")


def gate(modes: Sequence[Mode], settings: dict[str, Any], workload: Workload) -> list[dict[str, Any]]:
    """Loss and adapter gradients of each mode against its reference's, in float32 on a few ragged samples.

    Raises SystemExit where they differ, so that no figure of a wrong step is ever printed.
    """
    exact = Foundation(settings, torch.float32)
    by_name = {mode.name: mode for mode in modes}
    results: dict[str, tuple[Tensor, Tensor]] = {}

    def gradients(mode: Mode) -> tuple[Tensor, Tensor]:
        if mode.name not in results:
            stepper = Stepper(mode, exact)
            generator = torch.Generator().manual_seed(0)
            for p in stepper.parameters:  # a fresh adapter's B is zero, and half of all gradients with it
                p.data.copy_(0.02 * torch.randn(p.shape, generator=generator))
            loss = stepper.gradients(stepper.prepare(workload.batches[mode.order][0][:_GATE_ROWS], workload.beta))
            results[mode.name] = loss, torch.cat([cast(Tensor, p.grad).flatten() for p in stepper.parameters])
        return results[mode.name]

    rows: list[dict[str, Any]] = []
    for mode in modes:
        if mode.reference not in by_name:
            continue
        (loss, grads), (expected_loss, expected) = gradients(mode), gradients(by_name[mode.reference])
        rows.append({
            "mode": mode.name,
            "reference": mode.reference,
            "loss_error": float((loss - expected_loss).abs() / expected_loss.abs()),
            "gradient_error": float((grads - expected).norm() / expected.norm()),
        })  # fmt: skip
    red = [row for row in rows if not max(row["loss_error"], row["gradient_error"]) <= _TOLERANCE]
    if red:
        show(red)
        raise SystemExit(f"the gate is red: {', '.join(r['mode'] for r in red)}; no speed is reported")
    return rows


@dataclass
class Measured:
    """One mode on one data set."""

    mode: Mode
    peak_mb: float
    padding_share: float
    costs: list[Cost]
    tokens: list[int]


def measure(modes: Sequence[Mode], foundation: Foundation, workload: Workload, steps: int) -> dict[str, Measured]:
    """Mode -> what its steps cost; the modes take turns, so that a slow minute of the machine meets all of them."""
    steppers = [Stepper(mode, foundation) for mode in modes]
    ready = {s.mode.name: [s.prepare(b, workload.beta) for b in workload.batches[s.mode.order]] for s in steppers}
    results = {}
    for stepper in steppers:
        stepper.settle()
        batches = ready[stepper.mode.name]
        peak = peak_mb_of(lambda: stepper.step(batches[0]))  # noqa: B023
        padding = statistics.mean(batch.padding_share for batch in batches)
        results[stepper.mode.name] = Measured(stepper.mode, peak, padding, [], [])
    for number in range(steps):
        for stepper in steppers:
            batch = ready[stepper.mode.name][number % len(workload.batches["paper"])]
            measured = results[stepper.mode.name]
            measured.costs.append(time_of(lambda: stepper.step(batch)))  # noqa: B023
            measured.tokens.append(batch.tokens)
        print(f"{workload.name}: round {number + 1} of {steps}", file=sys.stderr, flush=True)
    return results


def rows_of(dataset: str, results: dict[str, Measured]) -> list[dict[str, Any]]:
    """The table's rows of one data set; a ratio is None where the mode it divides by was left out."""

    def ratio(measured: Measured, to: str) -> float | None:
        if to not in results:
            return None
        rounds = zip(measured.costs, results[to].costs, strict=True)
        return statistics.median(ours.counts / theirs.counts for ours, theirs in rounds)

    rows = []
    for name, measured in results.items():
        cpu, wall = [c.cpu for c in measured.costs], [c.wall for c in measured.costs]
        rows.append({
            "dataset": dataset,
            "mode": name,
            "label": measured.mode.label,
            "ratio_to_trl": ratio(measured, "trl"),
            "ratio_to_sft": ratio(measured, measured.mode.sft),
            "cpu_seconds": statistics.median(cpu),
            "cpu_iqr": spread(cpu),
            "wall_seconds": statistics.median(wall),
            "wall_iqr": spread(wall),
            "peak_mb": measured.peak_mb,
            "tokens_per_second": statistics.median(n / s for n, s in zip(measured.tokens, wall, strict=True)),
            "padding_share": measured.padding_share,
            "rounds": len(cpu),
        })  # fmt: skip
    return rows


def over_all(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each mode with the geometric means over the data sets."""
    means = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        own = [row for row in rows if row["mode"] == mode]
        mean = {"dataset": "all", "mode": mode, "label": own[0]["label"]}
        for name in AVERAGED:
            values = [row[name] for row in own]
            mean[name] = None if None in values else statistics.geometric_mean(values)
        means.append(mean)
    return means


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Bars of the mean ratios: to TRL's step, and to our own sft's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    means = [row for row in rows if row["dataset"] == "all"]
    figure, both = pyplot.subplots(1, 2, figsize=(12, 0.4 * len(means) + 1.5), sharey=True, layout="constrained")
    for axes, name, title in zip(both, ("ratio_to_trl", "ratio_to_sft"), ("TRL's step", "our sft's step"), strict=True):
        bars = axes.barh([row["label"] for row in means], [row[name] or 0.0 for row in means])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.margins(x=0.12)
        axes.axvline(1.0, color="grey", linewidth=0.8)
        axes.set_xlabel(f"time of a step, {title} = 1")
    both[0].invert_yaxis()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything the command does but printing and writing. Raises InputError for unknown modes or data sets."""
    model = {"name_or_path": arguments.model, "attn": arguments.attn}
    settings = {"model": model, "data": {"instructions": arguments.instructions}}
    modes = list(MODES)
    if arguments.modes:
        names = arguments.modes.split(",")
        if unknown := set(names) - {mode.name for mode in modes}:
            raise InputError(f"--modes: {', '.join(sorted(unknown))}; there are {', '.join(m.name for m in modes)}")
        modes = [mode for mode in modes if mode.name in names]
    names, batches = arguments.datasets.split(","), min(arguments.steps, _BATCHES)
    workloads = [Workload.read(settings, name, arguments.data, count=batches, rows=arguments.rows) for name in names]
    checked = gate(modes, settings, workloads[0])
    foundation = Foundation.for_this_device(settings)
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        rows += rows_of(workload.name, measure(modes, foundation, workload, arguments.steps))
    return {
        "dtype": str(foundation.dtype).removeprefix("torch."),
        "model": Path(arguments.model).name,
        "attn": arguments.attn,
        "batch": arguments.rows,
        "gate": checked,
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds one for each data set")
    parser.add_argument("--datasets", default="14lap,webnlg,agnews", help="names, separated by commas")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    parser.add_argument(
        "--modes", help=f"names, separated by commas; by default all: {', '.join(m.name for m in MODES)}"
    )
    parser.add_argument("--instructions", choices=["concise", "detailed"], default="concise")
    parser.add_argument("--attn", default="sdpa", help="the attention of every mode, as model.attn")
    parser.add_argument("--rows", type=int, default=8, help="samples of a batch")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each mode on each data set")
    parser.add_argument("--json", type=Path, help="also write the rows here, and a bar chart beside them")
    parser.add_argument("--add", action="store_true", help="keep the rows that FILE has of other data sets")
    arguments = parser.parse_args(argv)
    if arguments.add and not arguments.json:
        parser.error("--add: keeps the rows of a file; name it with --json")
    if not (torch.cuda.is_available() or torch.get_num_threads() == 1):
        print("note: set OMP_NUM_THREADS=1 for CPU times that another machine can repeat", file=sys.stderr)
    try:
        result = run(arguments)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.add and arguments.json.exists():
        here = {row["dataset"] for row in result["rows"]} | {"all"}
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
        result["rows"] = [row for row in kept if row["dataset"] not in here] + result["rows"]
    result["rows"] += over_all(result["rows"])
    show(result["rows"], COLUMNS)
    if arguments.json:
        write_json(arguments.json, result)
        draw(result["rows"], arguments.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
