"""What a run says: metrics.jsonl (one line a step), TensorBoard and other trackers (the same scalars), and a progress
bar on rank 0.

metrics.jsonl is the record; TensorBoard's files are made from it. A resumed run cuts the record back to its
checkpoint and writes TensorBoard anew, so neither ever holds a step twice. A figure that is not finite is null in the
record and a gap in TensorBoard.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from anit_ds.adversarial.stats import StepStats
from anit_ds.config import Config
from anit_ds.files import finite_or_null, json_lines, replacing
from anit_ds.identity import identity
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder
from anit_ds.training.hparams import hyperparameters
from anit_ds.training.nonfinite import LostSteps
from anit_ds.training.trackers import Trackers

logger = logging.getLogger(__name__)


class Monitor:
    """Collects statistics of every step on the device, fetches them every `log_every` steps, writes them on rank 0.

    `lost` is told of every step then, on every rank.
    """

    def __init__(
        self, config: Config, run: RunFolder, lost: LostSteps, *, total_steps: int, start: int, dev_due: bool = False
    ) -> None:
        """start: the steps that the checkpoint has; dev_due: whether the evaluation behind it is made anew."""
        self.config, self.run, self.lost, self.log_every = config, run, lost, config.train.log_every
        self._pending: list[tuple[int, StepStats, dict[str, float], str]] = []
        self._writer: SummaryWriter | None = None
        self._trackers: Trackers | None = None
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}  # of each loss the last one: a step may have one of the two alone
        if distributed.rank() == 0:
            shutil.rmtree(run.tensorboard, ignore_errors=True)
            if "tensorboard" in config.train.report_to:
                self._writer = SummaryWriter(str(run.tensorboard))
                self._writer.add_text("config", f"```yaml\n{run.config.read_text(encoding='utf-8')}\n```")
            told = self._cut_back(start, dev_due)
            others = [name for name in config.train.report_to if name != "tensorboard"]
            self._trackers = Trackers(run, others, identity(config), told=told) if others else None
            self._record = open(run.metrics, "ab")  # noqa: SIM115 (open for the run's whole life)
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=total_steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
                mininterval=0.1 if terminal else 15.0,
            )  # fmt: skip

    def _cut_back(self, start: int, dev_due: bool) -> dict[str, int]:
        """Keep the record of steps up to `start`, and show it in TensorBoard, line by line: it may be a million.

        A line that cannot be read costs itself alone. Returns of each figure the last step that the record
        had it for.
        """
        last: dict[str, int] = {}
        if not self.run.metrics.exists():
            return last
        broken: list[int] = []
        with self.run.metrics.open("rb") as record, replacing(self.run.metrics) as kept:
            for number, line in json_lines(record, lambda number, problem: broken.append(number)):
                if not isinstance(line, dict) or not _is_number(line.get("step")):
                    broken.append(number)
                    continue
                last |= {name: max(last.get(name, 0), int(line["step"])) for name in line}
                again = dev_due and line["step"] == start and "dev/micro_f1" in line
                if line["step"] <= start and not again:
                    kept.write(_as_json(line))
                    self._to_tensorboard(line)
        if broken:
            logger.warning("%s: lines that cannot be read are left out: %s", self.run.metrics, broken)
        return last

    def step(self, step: int, stats: StepStats, scalars: dict[str, float], datasets: str) -> None:
        """Note a finished optimizer step (numbered from 1) on `datasets`. `scalars` are already global; `stats` are
        this rank's."""
        self._pending.append((step, stats, scalars, datasets))
        if self._bar is not None:
            self._bar.update(1)
        if len(self._pending) >= self.log_every:
            self.flush()

    def flush(self) -> None:
        """Add the ranks' statistics up, and write every step since the last flush. All ranks call it together."""
        if not self._pending:
            return
        names = sorted({name for _, stats, *_ in self._pending for name in stats})
        table = distributed.all_reduce_sum(_table([stats for _, stats, *_ in self._pending], names)).double().cpu()
        for (step, _, scalars, datasets), sums in zip(self._pending, table, strict=True):
            line = {name: total / weight for name, (total, weight) in zip(names, sums.tolist(), strict=True) if weight}
            line |= scalars
            self.lost.note(step, line, datasets)
            self._write({"step": step, **line})
            self._show(line)
        self._pending.clear()

    def scalar(self, step: int, name: str, value: float) -> None:
        """One figure beside the steps' own, such as dev/micro_f1."""
        self._write({"step": step, name: value})

    def say(self, text: str) -> None:
        """A line on rank 0's terminal that leaves the bar whole."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def conclude(self, step: int, scores: Mapping[str, float | None]) -> None:
        """The final scores, which summary.json keeps: in TensorBoard's hparams tab, and for the other trackers."""
        known = {name: float(value) for name, value in scores.items() if value is not None}
        if self._writer is not None:
            self._writer.add_hparams(hyperparameters(self.config), known, run_name=".", global_step=step)
        if self._trackers is not None:
            self._trackers.conclude(step, known)

    def close(self) -> None:
        """Close the files, also where an error ends this rank alone: the others may wait for it elsewhere."""
        if self._writer is not None:
            self._writer.close()
        if self._trackers is not None:
            self._trackers.close()
        if self._bar is not None:
            self._record.close()
            self._bar.close()

    def _write(self, line: dict[str, float]) -> None:
        if distributed.rank() != 0:
            return
        self._record.write(_as_json(line))
        self._record.flush()
        self._to_tensorboard(line)
        if self._trackers is not None:
            self._trackers.log({name: value for name, value in line.items() if _is_number(value)})

    def _to_tensorboard(self, line: dict[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in line.items():
            if name != "step" and _is_number(value):
                self._writer.add_scalar(name, value, int(line["step"]))

    def _show(self, line: dict[str, float]) -> None:
        if self._bar is not None:
            losses = {"loss": line.get("loss/clean"), "adv": line.get("loss/adversarial")}
            self._shown |= {name: f"{loss:.3f}" for name, loss in losses.items() if loss is not None}
            self._bar.set_postfix(self._shown, refresh=False)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_json(line: dict[str, float]) -> bytes:
    return json.dumps(finite_or_null(line), allow_nan=False).encode() + b"\n"


def _table(pending: Sequence[StepStats], names: list[str]) -> torch.Tensor:
    """[steps, names, 2] sums and weights; a name that a step lacks has no weight."""
    nothing = torch.zeros(2, device=next(iter(pending[0].values())).device)
    return torch.stack([torch.stack([stats.get(name, nothing) for name in names]) for stats in pending])


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this rank in MB: allocated on its GPU, or resident on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated(device) / 2**20
