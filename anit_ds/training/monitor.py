"""What a run says: metrics.jsonl (one line a step), TensorBoard (the same scalars), and a progress bar on rank 0.

metrics.jsonl is the record; TensorBoard's files are made from it. A resumed run cuts the record back to its
checkpoint and writes TensorBoard anew, so neither ever holds a step twice.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from anit_ds.adversarial.stats import StepStats
from anit_ds.files import write_atomically
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder


class Monitor:
    """Collects statistics of every step on the device, fetches them every `log_every` steps, writes them on rank 0."""

    def __init__(self, run: RunFolder, *, total_steps: int, start: int, log_every: int, config_text: str) -> None:
        self.run, self.log_every = run, log_every
        self._pending: list[tuple[int, StepStats, dict[str, float]]] = []
        self._writer: SummaryWriter | None = None
        self._bar: tqdm[Any] | None = None
        if distributed.rank() == 0:
            kept = self._cut_back(start)
            shutil.rmtree(run.tensorboard, ignore_errors=True)
            self._writer = SummaryWriter(str(run.tensorboard))
            self._writer.add_text("config", f"```yaml\n{config_text}\n```")
            for line in kept:
                self._to_tensorboard(line)
            self._record = open(run.metrics, "a", encoding="utf-8")  # noqa: SIM115 (open for the run's whole life)
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=total_steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
                mininterval=0.5 if terminal else 15.0,
            )  # fmt: skip

    def _cut_back(self, start: int) -> list[dict[str, float]]:
        """Keep the lines of steps before `start` (a kill may have left a torn last one); returns them."""
        if not self.run.metrics.exists():
            return []
        kept = []
        for text in self.run.metrics.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break  # torn by a kill: everything after it is newer than any checkpoint
            if line["step"] <= start:
                kept.append(line)
        write_atomically(self.run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def step(self, step: int, stats: StepStats, scalars: dict[str, float]) -> None:
        """Note a finished optimizer step (numbered from 1). `scalars` are already global; `stats` are this rank's."""
        self._pending.append((step, stats, scalars))
        if len(self._pending) >= self.log_every:
            self.flush()

    def flush(self) -> None:
        """Add the ranks' statistics up, and write every step since the last flush. All ranks call it together."""
        if not self._pending:
            return
        names = sorted({name for _, stats, _ in self._pending for name in stats})
        table = distributed.all_reduce_sum(_table(self._pending, names)).double().cpu()
        if self._writer is not None:
            for (step, _, scalars), sums in zip(self._pending, table, strict=True):
                line: dict[str, float] = {"step": step}
                for name, (total, weight) in zip(names, sums.tolist(), strict=True):
                    if weight > 0:
                        line[name] = total / weight
                self._write({**line, **scalars})
            self._advance(len(self._pending), line)
        self._pending.clear()

    def scalar(self, step: int, name: str, value: float) -> None:
        """One figure beside the steps' own, such as dev/micro_f1."""
        if self._writer is not None:
            self._write({"step": step, name: value})

    def say(self, text: str) -> None:
        """A line on rank 0's terminal that leaves the bar whole."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._record.close()
        if self._bar is not None:
            self._bar.close()

    def _write(self, line: dict[str, float]) -> None:
        self._record.write(json.dumps(line) + "\n")
        self._record.flush()
        self._to_tensorboard(line)

    def _to_tensorboard(self, line: dict[str, float]) -> None:
        assert self._writer is not None
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(line["step"]))

    def _advance(self, steps: int, line: dict[str, float]) -> None:
        assert self._bar is not None
        shown = {"loss": line.get("loss/clean"), "adv": line.get("loss/adversarial")}
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None}, refresh=False)
        self._bar.update(steps)


def _table(pending: Sequence[tuple[int, StepStats, dict[str, float]]], names: list[str]) -> torch.Tensor:
    """[steps, names, 2] sums and weights; a name that a step lacks has no weight."""
    device = next(iter(pending[0][1].values())).device
    nothing = torch.zeros(2, device=device)
    return torch.stack([torch.stack([stats.get(n, nothing) for n in names]) for _, stats, _ in pending])


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this rank in MB: allocated on its GPU, or resident on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated(device) / 2**20
