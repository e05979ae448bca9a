"""How long a run trains: its optimizer steps, when it looks at dev and saves, its patience, and what makes it longer.

A run goes on where its YAML asks for more steps or for more patience than it did. The steps that were made stay what
they are; from there on the learning rate and both warm-ups are those of the longer run at that step. So it ends as the
longer run would have from the start where none of them looks at a run's length (lr_schedule: constant, train.warmup and
method.warmup 0), and as another run elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.runfolder import RunFolder
from anit_ds.training.checkpoint import latest_good, step_of
from anit_ds.training.engine import learning_rate
from anit_ds.training.scores import Best


@dataclass(frozen=True)
class Length:
    """steps: optimizer steps of the run. replays: how many of them in a row are on one minibatch. dev_interval: steps
    from one evaluation on dev to the next."""

    steps: int
    replays: int
    dev_interval: int
    patience: int | None
    checkpoint_every: int

    @classmethod
    def of(cls, config: Config, per_epoch: int) -> Self:
        """per_epoch: global batches of an epoch, each of which may be stepped on several times in a row. Raises
        InputError where early stopping could never stop the run."""
        train, every, method = config.train, config.eval.every, config.method
        minibatches = math.ceil(train.epochs * per_epoch / method.epochs_divided_by)
        steps = train.max_steps or minibatches * method.replays
        of_epoch = per_epoch * method.replays / method.epochs_divided_by
        interval = steps if every is None else max(1, round(every * of_epoch))
        interval += -interval % method.replays if every is not None else 0  # dev is for a whole minibatch's weights
        if train.early_stopping_patience and interval >= steps:
            raise InputError(
                f"train.early_stopping_patience: counts evaluations on dev, and eval.every makes the first at step "
                f"{interval} of {steps}; make eval.every smaller, or leave train.early_stopping_patience out"
            )
        return cls(steps, method.replays, interval, train.early_stopping_patience, train.checkpoint_every)

    def between_minibatches(self, step: int) -> bool:
        """Where a run may stop: a minibatch's replays share a delta, or its gradient, that no checkpoint holds."""
        return step % self.replays == 0 or step == self.steps

    def is_over(self, step: int, best: Best) -> bool:
        """Whether all steps are made, or dev has not become better for `early_stopping_patience` evaluations."""
        out_of_patience = self.patience is not None and best.since >= self.patience and self.between_minibatches(step)
        return step >= self.steps or out_of_patience

    def evaluates_at(self, step: int) -> bool:
        return step == self.steps or self.is_in_turn(step)

    def is_in_turn(self, step: int) -> bool:
        """Whether a longer run would evaluate on dev here too: only then may it cost patience."""
        return step % self.dev_interval == 0

    def checkpoints_at(self, step: int) -> bool:
        every = self.checkpoint_every
        due = every and step // every > (step - self.replays) // every
        return bool(due and self.between_minibatches(step))

    def why_it_stopped(self, step: int, best: Best) -> str | None:
        """A sentence where a run that is over has not made all its steps."""
        if step >= self.steps:
            return None
        return (
            f"early stopping at step {step} of {self.steps}: {best.since} evaluations on dev after that of step "
            f"{best.step} were not better than its {best.micro_f1:.4f}"
        )


def check_longer(run: RunFolder, was: Length, now: Length) -> None:
    """Raises InputError where a run in its folder cannot go on from one length to another."""
    instead = "choose another out=, or empty it with --fresh"
    if now.steps < was.steps:
        raise InputError(
            f"{run.path}: holds a run of {was.steps} steps, and train.epochs or train.max_steps now ask for "
            f"{now.steps}; a run can go on for longer, not end earlier: {instead}"
        )
    if (now.patience or math.inf) < (was.patience or math.inf):
        raise InputError(
            f"{run.path}: train.early_stopping_patience is {was.patience or 'null'} there and {now.patience} here; a "
            f"run can get more patience, not less: {instead}"
        )
    there = latest_good(run.checkpoints)
    if now.steps > was.steps and there and (step := step_of(there)) % was.replays:
        raise InputError(
            f"{run.path}: its last checkpoint, of step {step}, is between the {was.replays} replays of a minibatch and "
            f"holds nothing of what the next one needs, so it cannot go on: {instead}"
        )
    if run.summary.exists() and there is None:
        raise InputError(f"{run.path}: without a checkpoint the run cannot go on for longer: {instead}")


def told_of_longer(config: Config, step: int, was: Length, now: Length) -> str:
    """What the log says where a run goes on after `step` steps."""
    if now.steps == was.steps:
        return f"goes on after {step} steps with another patience"
    told = f"goes on after {step} steps to {now.steps}, where it was a run of {was.steps}"
    then, next_ = (learning_rate(config.train, min(step, n - 1), n) for n in (was.steps, now.steps))
    if then == next_:
        return f"{told}; the learning rate stays {next_:g}"
    return f"{told}; the learning rate goes from {then:.3g} to {next_:.3g}, that of a run of {now.steps} steps here"
