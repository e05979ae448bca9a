"""Training, from a configuration to a folder with the best adapter: `train(config)` is the command `anit train`.

Three steps of a run, read in one sitting: `_optimizer_step` takes a global batch from the feed, hands each micro-batch
to the method, and calls `engine.step`. What surrounds it is loading, resuming, evaluating on dev, and saving.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anit_ds.adversarial import Batch, Method, PerturbableLM, StepStats
from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData, forget_epochs
from anit_ds.errors import InputError, RunFailed
from anit_ds.evaluation import Evaluator, Interrupted
from anit_ds.files import write_atomically
from anit_ds.folder_lock import only_writer
from anit_ds.identity import configuration_hash
from anit_ds.modeling import (
    base_fingerprint,
    dtype_name,
    load_tokenizer,
    peft_config,
    resolve_dtype,
    with_fields_of_init_from,
)
from anit_ds.ranks import distributed
from anit_ds.ranks.signals import Signals
from anit_ds.runfolder import RunFolder, log_to
from anit_ds.sealed import write_sealed
from anit_ds.training.batching import Split
from anit_ds.training.best import read_best, save_best
from anit_ds.training.cautions import caution
from anit_ds.training.checkpoint import (
    latest_good,
    load_checkpoint,
    load_weights,
    loss_scale,
    optimizer_steps,
    prune,
    restore_best,
    save_checkpoint,
)
from anit_ds.training.ds_config import deepspeed_config
from anit_ds.training.engine import set_learning_rate, take_step
from anit_ds.training.feed import Feed
from anit_ds.training.gathered_weights import whole_for_evaluation
from anit_ds.training.length import Length, check_longer, told_of_longer
from anit_ds.training.model import build_model
from anit_ds.training.monitor import Monitor, peak_memory_mb
from anit_ds.training.nonfinite import LostSteps
from anit_ds.training.scores import Best, Scores
from anit_ds.training.summary import finished
from anit_ds.training.trackers import check_installed

logger = logging.getLogger(__name__)

Forecast = Callable[[Config, Sequence[Encoded], int], str]


def train(
    config: Config, *, fresh: bool = False, signals: Signals | None = None, forecast: Forecast | None = None
) -> dict[str, Any] | None:
    """Run or resume a training; returns the summary, or None when a signal asked for a requeue.

    `signals` are those that the process has listened to since it began; by default they count from here on.
    `forecast` says of the run, its training samples and the ranks on this machine what they will need; the log has it
    before weights are loaded.
    Raises InputError for anything wrong in the configuration or the data.
    """
    signals, run = signals or Signals(), RunFolder(config.out)
    with distributed.watched(config.train.rank_timeout, run.path) as watchdog, ExitStack() as held:
        distributed.from_main(lambda: held.enter_context(only_writer(run.path)))
        distributed.from_main(lambda: held.enter_context(run.kept_until_accepted()))
        config = distributed.from_main(lambda: run.begin(_with_whole_lora(config, run, fresh), fresh=fresh))
        log_to(run.path, distributed.rank())
        there = distributed.from_main(lambda: run.of_another_length(config))
        summary = distributed.from_main(lambda: finished(run)) if there is None else None
        if summary is not None:
            logger.info("%s is finished; --fresh trains it again", run.path)
            return summary
        with watchdog.working():
            trainer = Trainer(config, run, watchdog, there, forecast)
        return trainer.run_to_the_end(signals)


class Trainer:
    """One run's state: the model under its engine, the feed, the position."""

    config: Config
    run: RunFolder
    dtype: torch.dtype
    feed: Feed
    length: Length
    truncated: dict[str, int]  # texts of each split that lost their end
    left_out: int  # training samples without room
    lm: PerturbableLM  # the model under DeepSpeed, with the embeddings in our hands
    method: Method
    scores: Scores
    lost: LostSteps
    step: int  # optimizer steps made
    saved: int  # those that the last checkpoint has
    spent: float  # seconds of training before this start
    begun: float  # when training alone would have begun, in one go and never evaluated, on the process's clock
    before: float | None  # the untouched model's score, where it was asked for
    earlier: list[int]  # the steps that it was to make before it was asked for more
    dev_due: bool  # whether a signal cut the evaluation on dev short that belongs to this step
    signals: Signals
    monitor: Monitor
    watchdog: distributed.Watchdog

    def __init__(
        self, config: Config, run: RunFolder, watchdog: distributed.Watchdog, shorter: Config | None = None,
        forecast: Forecast | None = None,
    ) -> None:  # fmt: skip
        """shorter: what the run in the folder was asked for, where it is to go on for longer."""
        self.config, self.run, self.watchdog, self.step = config, run, watchdog, 0
        split = Split.of(config.train, distributed.world_size())
        self.dtype = resolve_dtype(config.model.dtype, distributed.device().type)
        ds_config = self._check_early(split)
        tokenizer = load_tokenizer(config.model)
        was = self._open_feed(tokenizer, split, shorter)
        limits = self._open_scores(tokenizer)
        base = distributed.from_main(self._fingerprint_of_base)
        self._log_forecast(forecast)
        self.config, self.lm, self.method = build_model(config, self.feed, ds_config, self.dtype, self.length.steps)
        self._restore(self._resume(shorter))
        # Only now, with the model loaded, is a finished run one that goes on.
        begins: dict[str, Any] = {"data": self.feed.data.identities, "model": base, "answer_limits": limits}
        distributed.from_main(lambda: run.note(config, **begins, was=was.steps if was else None))
        self.earlier = distributed.from_main(lambda: [one["steps"] for one in run.earlier()])
        if was:
            logger.info("%s", told_of_longer(config, self.step, was, self.length))
        self.monitor = Monitor(
            config, run, self.lost, total_steps=self.length.steps, start=self.step, dev_due=self.dev_due
        )

    def _check_early(self, split: Split) -> dict[str, Any]:
        """DeepSpeed's configuration. Raises InputError for what is wrong with the run's own, before any work."""
        if self.config.lora is not None:
            peft_config(self.config.lora)
        check_installed(self.config.train.report_to)
        return deepspeed_config(self.config, split=split, dtype=self.dtype)

    def _open_feed(self, tokenizer: Any, split: Split, shorter: Config | None) -> Length | None:
        """Data, batches and the run's length; returns how long it was to be, where it is to go on for longer."""
        encoder = PromptEncoder.of(self.config, tokenizer)
        self.feed = Feed(
            self.config, encoder, self._load_data, accumulation=split.micro_batches,
            pad_id=tokenizer.pad_token_id, device=distributed.device(),
        )  # fmt: skip
        self.length = Length.of(self.config, self.feed.per_epoch)
        was = Length.of(shorter, self.feed.per_epoch) if shorter else None
        if was:
            distributed.from_main(lambda: check_longer(self.run, was, self.length))
        self.truncated, self.left_out = self.feed.count_what_is_cut()
        return was

    def _open_scores(self, tokenizer: Any) -> dict[str, int]:
        """What evaluates the model; returns the tokens that an answer may have, by data set."""
        data = self.feed.data
        limits = distributed.from_main(lambda: dict(Evaluator(self.config, data, tokenizer).answer_limits))
        evaluator = Evaluator(self.config, data, tokenizer, limits)
        self.scores = Scores(evaluator, self.run, self._beat_in_evaluation, dtype_name(self.dtype))
        return limits

    def _log_forecast(self, forecast: Forecast | None) -> None:
        here = distributed.ranks_here()
        if forecast and distributed.rank() == 0:
            said = forecast(self.config, [view for views in self.feed.samples for view in views], here)
            if said:
                logger.info(said)

    def _restore(self, state: dict[str, Any]) -> None:
        """The position that a checkpoint's state has; the beginning where it is empty."""
        self.step = self.saved = state.get("step", 0)
        self.spent = state.get("train_seconds", 0.0)
        self.before = state.get("before")
        self.lost = LostSteps(float16=self.dtype is torch.float16, **state.get("lost", {}))
        self.dev_due = state.get("dev_due", False)

    def _fingerprint_of_base(self) -> str | None:
        """Raises InputError where the base model is not the one that the run in the folder began with."""
        base, begun = base_fingerprint(self.config.model), self.run.begun_model()
        if begun is not None and base != begun:
            raise InputError(
                f"model.name_or_path: {self.config.model.name_or_path} is not the model that the run in this folder "
                "began with; put back what it was, choose another out=, or begin anew with --fresh"
            )
        return base

    def _load_data(self, epoch: int) -> RunData:
        """The data as of an epoch. Noise that was drawn for earlier ones goes, but for what the last checkpoint is in:
        it can be drawn again."""
        run = self.run
        with self.watchdog.working():
            data = distributed.main_first(
                lambda: RunData.load(self.config, run.data, epoch=epoch, begun=run.begun_data())
            )
        if epoch and distributed.rank() == 0:
            forget_epochs(self.run.data, but={epoch, self.feed.epoch_of(self.saved)})
        return data

    @property
    def best(self) -> Path:
        """The folder of the best weights on dev."""
        return self.run.best(self.config)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.lm.module
        return module

    @property
    def seconds(self) -> float:
        """Of training and its checkpoints, without evaluations, that of earlier starts included."""
        return time.perf_counter() - self.begun

    def _optimizer_step(self) -> None:
        """One step: a global batch from the feed, each micro-batch through the method, `engine.step`."""
        started, feed, engine = time.perf_counter(), self.feed, self.lm.engine
        indices = feed.samples_of(self.step)
        lr = set_learning_rate(engine, self.config.train, self.step, self.length.steps)
        made = feed.batches(self.step, indices, self._losses_of)
        batches = [self.lm.prepare(batch).to(feed.device) for batch in made]
        stats = StepStats()
        for number, (batch, upcoming) in enumerate(zip(batches, [*batches[1:], None], strict=True)):
            # Dropout masks follow from the position, so a resumed run draws the same ones without saved RNG states.
            torch.manual_seed(_seed_of(self.config.train.seed, self.step, number, distributed.rank()))
            self.method.foresee(upcoming)
            stats.merge(self.method.backward(self.lm, batch))
            grad_norm = take_step(engine)  # which moves the weights behind the last micro-batch alone
        self.step += 1
        figures = feed.figures(indices, time.perf_counter() - started)
        figures |= {"lr": lr, "grad_norm": grad_norm, "memory": peak_memory_mb(feed.device)}
        self.monitor.step(self.step, stats, figures, feed.datasets(indices))

    def _losses_of(self, batch: Batch) -> list[float]:
        """Each sample's answer loss, of the model as it is; the host waits for it."""
        with torch.no_grad(), self.lm.dropout.off():
            (losses,) = self.lm.losses(self.lm.prepare(batch).to(self.feed.device))
        return losses.tolist()

    def run_to_the_end(self, signals: Signals) -> dict[str, Any] | None:
        """Train, evaluate, save. Returns the summary, or None after a signal (state saved, requeue written)."""
        self.signals = signals
        if distributed.rank() == 0:
            self.run.requeue.unlink(missing_ok=True)
        self._log_start()
        self.begun = time.perf_counter() - self.spent
        try:
            if self.config.eval.before and self.before is None:
                with self._evaluating():
                    self.before = self.scores.untouched(self.module)
            if self.dev_due:
                self._evaluate_dev()
            while not self.length.is_over(self.step, self.scores.best):
                self._optimizer_step()
                self._beat()
                self._stop_if_nothing_is_learned()
                stop = distributed.any_rank(signals.received is not None) and self.length.between_minibatches(self.step)
                if self.length.evaluates_at(self.step):
                    self._evaluate_dev()
                over = self.length.is_over(self.step, self.scores.best)
                if stop or over or self.length.checkpoints_at(self.step):
                    self._save()
                if stop and not over:
                    self._ask_for_requeue()
                    return None
            self.monitor.flush()
            if why := self.length.why_it_stopped(self.step, self.scores.best):
                logger.info("%s", why)
            if not self.scores.best.step:
                raise RunFailed(self._failure_message())
            return self._finish()
        except Interrupted:
            if self.dev_due:
                self._save()
            self._ask_for_requeue()
            return None
        finally:
            self.monitor.close()

    def _stop_if_nothing_is_learned(self) -> None:
        hopeless = self.lost.hopeless(an_epoch=self.feed.per_epoch * self.feed.replays, total=self.length.steps)
        if hopeless and not self.scores.best.step:
            raise RunFailed(self._failure_message())

    def _failure_message(self) -> str:
        why = self.lost.why_nothing_was_learned(self.step, self.config.train, dtype_name(self.dtype))
        return f"{self.run.path}: {why}"

    def _log_start(self) -> None:
        logger.info(
            "%s on %d samples, %d steps of %d, %d ranks x %d micro-batches, %s, beta %s",
            self.config.method.name, len(self.feed.samples), self.length.steps, self.config.train.global_batch,
            distributed.world_size(), self.feed.accumulation, dtype_name(self.dtype),
            ", ".join(f"{name} {beta:.4f}" for name, beta in self.feed.data.betas.items()),
        )  # fmt: skip
        if doubt := caution(self.config, self.feed.data):
            logger.warning("%s", doubt)

    def _beat(self) -> None:
        self.watchdog.beat(self.step)

    def _beat_in_evaluation(self) -> None:
        """Raises Interrupted once a signal has come, where the run may stop: on every rank after the same pass where
        weights are partitioned, else where each of them is."""
        self._beat()
        told = self.signals.received is not None
        if not self.length.between_minibatches(self.step):
            return
        # Ranks that gather weights together make their passes together, so they can vote; others must not wait.
        together = distributed.in_step(self.module)
        if distributed.any_rank(told) if together else distributed.heard_anywhere(told):
            raise Interrupted

    def _resume(self, shorter: Config | None) -> dict[str, Any]:
        path = distributed.from_main(lambda: latest_good(self.run.checkpoints))
        if path is None:
            return {}
        known = distributed.from_main(lambda: self.run.configurations(self.config))
        if shorter is not None:
            known.add(configuration_hash(shorter))
        state = load_checkpoint(self.lm.engine, path, configurations=known)
        self.scores.best = Best(**state["best"])
        if self.scores.best.step:
            distributed.from_main(lambda: restore_best(path, self.best))
        distributed.from_main(lambda: prune(self.run.checkpoints, path, keep=self.config.train.keep))
        logger.info("resumed from %s", path)
        return state

    def _save(self) -> None:
        self.monitor.flush()
        state = {
            "step": self.step,
            "optimizer_steps": optimizer_steps(self.lm.engine),
            "loss_scale": loss_scale(self.lm.engine),
            "best": vars(self.scores.best),
            "before": self.before,
            "dev_due": self.dev_due,
            "train_seconds": self.seconds,
            "betas": self.feed.data.betas,
            "ranks": distributed.world_size(),
            "configuration": configuration_hash(self.config),
            "lost": self.lost.counts(),
        }
        best = self.best if self.scores.best.step else None
        with self.watchdog.working():
            save_checkpoint(self.lm.engine, self.run.checkpoints, state, keep=self.config.train.keep, best=best)
        self.saved = self.step

    def _ask_for_requeue(self) -> None:
        why = self.signals.received or "a signal on another rank"
        if distributed.rank() == 0:
            write_atomically(self.run.requeue, f"{why} at step {self.step}\n")
        logger.info("%s: saved at step %d of %d; start again to go on", why, self.step, self.length.steps)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The weights whole where they fit, and the time no time of training."""
        started = time.perf_counter()
        try:
            with whole_for_evaluation(self.lm.engine, self.config.eval.whole_weights):
                yield
        finally:
            self.begun += time.perf_counter() - started

    def _evaluate_dev(self) -> None:
        self.monitor.flush()
        self.dev_due = True
        with self._evaluating():
            evaluation, better = self.scores.dev(
                self.module, self.step, usable=self.lost.finite > 0, in_turn=self.length.is_in_turn(self.step)
            )
        self.monitor.scalar(self.step, "dev/micro_f1", evaluation.micro_f1)
        self.monitor.say(f"step {self.step}: dev micro-F1 {evaluation.micro_f1:.4f}")
        if better:
            self._keep_best()
        self.dev_due = False

    def _keep_best(self) -> None:
        about = {"step": self.step, "configuration": configuration_hash(self.config)}
        with self.watchdog.working():
            save_best(self.lm.engine, self.best, about)

    def _finish(self) -> dict[str, Any]:
        after, robustness = self._score_the_best()
        summary = self._summary(after, robustness)
        best = self.scores.best
        self.monitor.conclude(self.step, {
            "final/dev_micro_f1": best.micro_f1 if best.step else None,
            "final/test_micro_f1": after["micro_f1"] if after else None,
            **{f"final/test_{noise}_micro_f1": told["micro_f1"] for noise, told in robustness.items()},
        })  # fmt: skip
        if distributed.rank() == 0:
            write_sealed(self.run.summary, summary)
        distributed.barrier()
        return summary

    def _score_the_best(self) -> tuple[dict[str, Any] | None, dict[str, dict[str, float]]]:
        """What the best weights score on test, where that is asked for, and under each noise."""
        if not self.config.eval.test and self.scores.dev_of_best() is not None:
            return None, {}
        load_weights(self.lm.engine, read_best(self.module, self.best), masters=False)
        with self._evaluating():
            if self.config.eval.test:
                return self.scores.test(self.module)
            self.scores.dev_again(self.module)
        return None, {}

    def _summary(self, after: dict[str, Any] | None, robustness: dict[str, dict[str, float]]) -> dict[str, Any]:
        """What summary.json says of the run (docs/run-folder.md)."""
        best = self.scores.best
        return {
            "method": self.config.method.name,
            "dataset": "+".join(s.name for s in self.feed.data.sets),
            "model": self.config.model.name_or_path,
            "seed": self.config.train.seed,
            "before": None if self.before is None else {"micro_f1": self.before},
            "after": after,
            "robustness": robustness,
            "dev": {"micro_f1": best.micro_f1, "step": best.step} if best.step else None,
            "beta": self.feed.data.betas,
            "steps": self.step,
            "stopped_early": self.length.why_it_stopped(self.step, best),
            "extended_from": [steps for steps in self.earlier if steps < self.length.steps],
            "train_seconds": round(self.seconds, 3),
            "nonfinite_steps": self.lost.nonfinite,
            "scaler_skips": self.lost.scaler_skips,
            "passes": METHODS[self.config.method.name].passes(self.config.method),
            "truncated": self.truncated,
            "left_out": self.left_out,
            "ranks": distributed.world_size(),
            "dtype": dtype_name(self.dtype),
        }


def _with_whole_lora(config: Config, run: RunFolder, fresh: bool) -> Config:
    """The configuration with all fields of an adapter that it goes on from; a finished run knows them by itself."""
    known = run.lora_of(config) if run.summary.exists() and not fresh else None
    return config.model_copy(update={"lora": known}) if known else with_fields_of_init_from(config)


def _seed_of(*numbers: int) -> int:
    """A 63-bit seed from several numbers, so that neighbouring steps and ranks share no stream."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
