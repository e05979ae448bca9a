"""Training, from a configuration to a folder with the best adapter: `train(config)` is the command `anit train`.

Three steps of a run, read in one sitting: `_optimizer_step` takes a global batch from the feed, hands each micro-batch
to the method, and calls `engine.step`. What surrounds it is loading, resuming, evaluating on dev, and saving.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from anit_ds.adversarial import Method, PerturbableLM, StepStats, build_method, embedding_scale
from anit_ds.config import Config
from anit_ds.data.prompts import PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.evaluation import Evaluator
from anit_ds.files import write_atomically, write_json
from anit_ds.modeling import (
    add_adapter,
    load_model,
    load_tokenizer,
    peft_config,
    resolve_dtype,
    use_activation_checkpointing,
)
from anit_ds.ranks import distributed
from anit_ds.ranks.signals import Signals
from anit_ds.runfolder import RunFolder, log_to
from anit_ds.training.adapter import read_adapter, save_adapter
from anit_ds.training.batching import accumulation
from anit_ds.training.checkpoint import (
    latest_good,
    load_checkpoint,
    load_weights,
    optimizer_steps,
    save_checkpoint,
)
from anit_ds.training.engine import (
    build_engine,
    deepspeed_config,
    learning_rate,
    sharded_loading,
    whole_weights,
    zero_stage,
)
from anit_ds.training.feed import Feed
from anit_ds.training.monitor import Monitor, peak_memory_mb
from anit_ds.training.schedule import choose_schedule
from anit_ds.training.scores import Best, Scores


def train(config: Config, *, fresh: bool = False, signals: Signals | None = None) -> dict[str, Any] | None:
    """Run or resume a training; returns the summary, or None when a signal asked for a requeue.

    `signals` are those that the process has listened to since it began; by default they count from here on.
    Raises InputError for anything wrong in the configuration or the data.
    """
    signals = signals or Signals()
    distributed.init()
    run = RunFolder(config.out)
    distributed.from_main(lambda: run.begin(config, fresh=fresh))
    log_to(run.path, distributed.rank())
    if run.summary.exists():
        distributed.logger().info("%s is finished; --fresh trains it again", run.path)
        summary: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
        return summary
    return Trainer(config, run).run_to_the_end(signals)


class Trainer:
    """One run's state: the model under its engine, the feed, the position."""

    config: Config
    run: RunFolder
    dtype: torch.dtype
    feed: Feed
    lm: PerturbableLM  # the model under DeepSpeed, with the embeddings in our hands
    method: Method
    scores: Scores
    step: int  # optimizer steps made
    spent: float  # seconds of training before this start
    before: float | None  # the untouched model's score, where it was asked for
    monitor: Monitor
    watchdog: distributed.Watchdog

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        ranks = distributed.world_size()
        micro_batches = accumulation(config.train.global_batch, config.train.micro_batch, ranks)
        device = distributed.device()
        self.dtype = resolve_dtype(config.model.dtype, device.type)
        peft_config(config.lora)  # what is wrong with it is said before any work
        ds_config = deepspeed_config(config, ranks=ranks, accumulation=micro_batches, dtype=self.dtype)
        tokenizer = load_tokenizer(config.model)
        self.encoder = PromptEncoder.of(config, tokenizer)
        self.feed = Feed(
            config, self.encoder, lambda epoch: load_data(config, run, epoch=epoch), accumulation=micro_batches,
            pad_id=tokenizer.pad_token_id, device=device,
        )  # fmt: skip
        self.scores = Scores(Evaluator(config, self.feed.data, tokenizer), run, self._beat)
        self.lm, self.method = self._load_model(ds_config)
        state = self._resume()
        self.step = state.get("step", 0)
        self.spent = state.get("train_seconds", 0.0)
        self.before = state.get("before")
        if not state and config.eval.before:
            self.before = self.scores.untouched(self.module)
        self.monitor = Monitor(
            run, total_steps=self.feed.total, start=self.step, log_every=config.train.log_every,
            config_text=run.config.read_text(encoding="utf-8"),
        )  # fmt: skip
        self.watchdog = distributed.Watchdog(timeout_seconds=config.train.rank_timeout, run_dir=run.path)

    def _load_model(self, ds_config: dict[str, Any]) -> tuple[PerturbableLM, Method]:
        config = self.config
        with sharded_loading(ds_config):
            model = load_model(config.model, self.dtype)
        scale = 1.0
        if config.method.eps_unit != "absolute":
            with whole_weights(model.get_input_embeddings()):  # type: ignore[operator]
                scale = embedding_scale(model, config.method.eps_unit)
        model = add_adapter(model, config)
        if config.train.activation_checkpointing:
            use_activation_checkpointing(model)
        if config.method.schedule == "auto":
            config = self._with_schedule(model, zero_stage(ds_config))
        lm = build_engine(model, config, ds_config)
        method = build_method(config.method, seed=config.train.seed, scale=scale, total_steps=self.feed.total)
        lm.checkpoint_attack = config.train.checkpoint_attack
        if config.packs:
            lm.take_packed_batches()
        else:
            lm.spare_masks()
        method.attach(lm)
        return lm, method

    def _with_schedule(self, model: nn.Module, stage: int) -> Config:
        nodes = len(set(distributed.all_gather_objects(platform.node())))
        schedule, why = choose_schedule(self.config, self.feed, model, stage=stage, nodes=nodes)
        distributed.logger().info("method.schedule: auto is %s (%s)", schedule, why)
        method = self.config.method.model_copy(update={"schedule": schedule})
        self.config = self.feed.config = self.config.model_copy(update={"method": method})
        return self.config

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.lm.module
        return module

    def _optimizer_step(self) -> None:
        started = time.perf_counter()
        feed, engine = self.feed, self.lm.engine
        indices = feed.samples_of(self.step)
        lr = learning_rate(self.config.train, self.step, feed.total)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        stats = StepStats()
        batches = [self.lm.prepare(batch).to(feed.device) for batch in feed.batches(self.step, indices)]
        for number, batch in enumerate(batches):
            # Dropout masks follow from the position, so a resumed run draws the same ones without saved RNG states.
            torch.manual_seed(_mix(self.config.train.seed, self.step, number, distributed.rank()))
            self.method.foresee(batches[number + 1] if number + 1 < len(batches) else None)
            stats.merge(self.method.backward(self.lm, batch))
            engine.step()
        self.step += 1
        seconds = time.perf_counter() - started
        self.monitor.step(self.step, stats, {
            "data/beta": float(np.mean([feed.beta(feed.encoded[i]) for i in indices])),
            "lr": lr,
            "grad_norm": float(engine.get_global_grad_norm() or 0.0),
            "tokens_per_second": sum(feed.lengths[i] for i in indices) / seconds,
            "step_seconds": seconds,
            "memory": peak_memory_mb(feed.device),
        })  # fmt: skip

    def run_to_the_end(self, signals: Signals) -> dict[str, Any] | None:
        """Train, evaluate, save. Returns the summary, or None after a signal (state saved, requeue written)."""
        if distributed.rank() == 0:
            self.run.requeue.unlink(missing_ok=True)
        self._say_what_begins()
        total, started = self.feed.total, time.perf_counter()
        try:
            while self.step < total:
                self._optimizer_step()
                self._beat()
                stop = distributed.any_rank(signals.received is not None) and self._between_minibatches()
                if self._evaluates_now():
                    self._evaluate_dev()
                if stop or self._checkpoints_now():
                    self._save(self.spent + time.perf_counter() - started)
                if stop and self.step < total:
                    self._ask_for_requeue(signals.received or "a signal on another rank")
                    return None
            self.monitor.flush()
            if self.scores.best.step == 0:
                save_adapter(self.lm.engine, self.run.adapter)
            return self._finish(self.spent + time.perf_counter() - started)
        finally:
            self.watchdog.stop()
            self.monitor.close()

    def _say_what_begins(self) -> None:
        distributed.logger().info(
            "%s on %d samples, %d steps of %d, %d ranks x %d micro-batches, %s, beta %s",
            self.config.method.name, len(self.feed.encoded), self.feed.total, self.config.train.global_batch,
            distributed.world_size(), self.feed.accumulation, _name(self.dtype),
            ", ".join(f"{name} {beta:.4f}" for name, beta in self.feed.data.betas.items()),
        )  # fmt: skip

    def _beat(self) -> None:
        self.watchdog.beat(self.step)

    def _resume(self) -> dict[str, Any]:
        path = distributed.from_main(lambda: latest_good(self.run.checkpoints))
        if path is None:
            return {}
        state = load_checkpoint(self.lm.engine, path)
        self.scores.best = Best(**state["best"])
        distributed.logger().info("resumed from %s", path)
        return state

    def _save(self, seconds: float) -> None:
        self.monitor.flush()
        state = {
            "step": self.step,
            "optimizer_steps": optimizer_steps(self.lm.engine),
            "best": vars(self.scores.best),
            "before": self.before,
            "train_seconds": seconds,
            "betas": self.feed.data.betas,
            "ranks": distributed.world_size(),
        }
        save_checkpoint(self.lm.engine, self.run.checkpoints, state, keep=self.config.train.keep)

    def _between_minibatches(self) -> bool:
        """Where a run may stop: a minibatch's replays share a delta that no checkpoint holds."""
        return self.step % self.feed.replays == 0 or self.step == self.feed.total

    def _checkpoints_now(self) -> bool:
        every = self.config.train.checkpoint_every
        due = every and self.step // every > (self.step - self.feed.replays) // every
        return self.step == self.feed.total or bool(due and self._between_minibatches())

    def _evaluates_now(self) -> bool:
        if self.step == self.feed.total:
            return True
        every = self.config.eval.every
        return every is not None and self.step % max(1, round(every * self.feed.per_epoch)) == 0

    def _ask_for_requeue(self, why: str) -> None:
        if distributed.rank() == 0:
            write_atomically(self.run.requeue, f"{why} at step {self.step}\n")
        distributed.logger().info("%s: saved at step %d of %d; start again to go on", why, self.step, self.feed.total)

    def _evaluate_dev(self) -> None:
        self.monitor.flush()
        evaluation, better = self.scores.dev(self.module, self.step)
        if evaluation is None:
            return
        self.monitor.scalar(self.step, "dev/micro_f1", evaluation.micro_f1)
        self.monitor.say(f"step {self.step}: dev micro-F1 {evaluation.micro_f1:.4f}")
        if better:
            save_adapter(self.lm.engine, self.run.adapter)

    def _finish(self, seconds: float) -> dict[str, Any]:
        after: dict[str, Any] | None = None
        robustness: dict[str, dict[str, float]] = {}
        if self.config.eval.test:
            load_weights(self.lm.engine, read_adapter(self.module, self.run.adapter), masters=False)
            after, robustness = self.scores.test(self.module)
        best = self.scores.best
        summary = {
            "method": self.config.method.name,
            "dataset": "+".join(s.name for s in self.feed.data.sets),
            "model": self.config.model.name_or_path,
            "seed": self.config.train.seed,
            "before": None if self.before is None else {"micro_f1": self.before},
            "after": after,
            "robustness": robustness,
            "dev": {"micro_f1": best.micro_f1, "step": best.step} if best.step else None,
            "beta": self.feed.data.betas,
            "steps": self.feed.total,
            "train_seconds": round(seconds, 3),
            "passes": self.method.passes,
            "truncated": self.encoder.truncated,
            "ranks": distributed.world_size(),
            "dtype": _name(self.dtype),
        }
        if distributed.rank() == 0:
            write_json(self.run.summary, summary)
        distributed.barrier()
        return summary


def load_data(config: Config, run: RunFolder, *, epoch: int = 0) -> RunData:
    """The run's data: rank 0 makes what is not there yet, then every rank reads it."""
    return distributed.main_first(lambda: RunData.load(config, run.data, epoch=epoch))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers, so that neighbouring steps and ranks share no stream."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
