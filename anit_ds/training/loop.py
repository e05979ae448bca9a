"""Training, from a configuration to a folder with the best adapter: `train(config)` is the command `anit train`.

Three steps of a run, read in one sitting: `_optimizer_step` deals a global batch out, hands each micro-batch to the
method, and calls `engine.step`. What surrounds it is loading, resuming, evaluating on dev, and saving.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from anit_ds.adversarial import Batch, Method, PerturbableLM, StepStats, build_method, embedding_scale
from anit_ds.config import Config
from anit_ds.data.prompts import Encoded, PromptEncoder
from anit_ds.data.rundata import RunData
from anit_ds.evaluation import Evaluation, Evaluator, beside_raw, write_evaluation
from anit_ds.files import write_atomically, write_json
from anit_ds.modeling import (
    adapter_off,
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
from anit_ds.training.batching import accumulation, collate, deal, filler, plan_epoch, steps_per_epoch
from anit_ds.training.checkpoint import (
    latest_good,
    load_checkpoint,
    load_weights,
    optimizer_steps,
    save_checkpoint,
)
from anit_ds.training.engine import build_engine, deepspeed_config, learning_rate, sharded_loading, whole_weights
from anit_ds.training.monitor import Monitor, peak_memory_mb


@dataclass
class Best:
    """The best adapter so far, by micro-F1 on dev."""

    micro_f1: float = -1.0
    step: int = 0


def train(config: Config, *, fresh: bool = False, signals: Signals | None = None) -> dict[str, Any] | None:
    """Run or resume a training; returns the summary, or None when a signal asked for a requeue.

    `signals` are those that the process has listened to since it began; by default they count from here on.
    Raises InputError for anything wrong in the configuration or the data.
    """
    signals = signals or Signals()
    distributed.init()
    run = RunFolder(config.out)
    distributed.from_main(lambda: run.prepare(config, fresh=fresh))
    log_to(run.path, distributed.rank())
    if run.summary.exists():
        distributed.logger().info("%s is finished; --fresh trains it again", run.path)
        summary: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
        return summary
    return Trainer(config, run).run_to_the_end(signals)


class Trainer:
    """One run's state: the model under its engine, the data, the position."""

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        ranks = distributed.world_size()
        self.accumulation = accumulation(config.train.global_batch, config.train.micro_batch, ranks)
        self.device = distributed.device()
        self.dtype = resolve_dtype(config.model.dtype, self.device.type)
        peft_config(config.lora)  # what is wrong with it is said before any work
        ds_config = deepspeed_config(config, ranks=ranks, accumulation=self.accumulation, dtype=self.dtype)
        self.tokenizer = load_tokenizer(config.model)
        self.data = load_data(config, run)
        self.encoder = PromptEncoder(
            self.tokenizer, style=config.prompt.style, order=config.prompt.order, max_length=config.data.max_length
        )
        self.epoch = -1
        self._enter_epoch(0)
        self.per_epoch = steps_per_epoch(len(self.samples), config.train.global_batch)
        # A minibatch that is stepped on m times takes m steps out of the epochs, so every method makes as many.
        self.replays = config.method.replays
        batches = math.ceil(config.train.epochs * self.per_epoch / self.replays)
        self.total = config.train.max_steps or batches * self.replays
        self.evaluator = Evaluator(config, self.data, self.tokenizer)
        self.lm, self.method = self._load_model(ds_config)
        self.best = Best()
        self.step = 0

    def _load_model(self, ds_config: dict[str, Any]) -> tuple[PerturbableLM, Method]:
        config = self.config
        with sharded_loading(ds_config):
            model = load_model(config.model, self.dtype)
        scale = 1.0
        if config.method.eps_unit == "relative":
            with whole_weights(model.get_input_embeddings()):  # type: ignore[operator]
                scale = embedding_scale(model)
        model = add_adapter(model, config)
        if config.train.activation_checkpointing:
            use_activation_checkpointing(model)
        lm = build_engine(model, config, ds_config)
        method = build_method(config.method, seed=config.train.seed, scale=scale)
        lm.checkpoint_attack = config.train.checkpoint_attack
        if config.train.padding_free:
            lm.take_packed_batches()
        method.attach(lm)
        return lm, method

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.lm.module
        return module

    def _enter_epoch(self, epoch: int) -> None:
        """Samples, their tokens, and the plan of an epoch; noise is drawn anew where the YAML asks for it."""
        if epoch == self.epoch:
            return
        config = self.config
        resampled = config.noise.resample == "epoch" and epoch > 0
        if resampled:
            self.data = load_data(config, self.run, epoch=epoch)
        if self.epoch < 0 or resampled or len(self.data.sets) > 1:
            self.samples = self.data.train_samples(seed=config.train.seed, epoch=epoch)
            self.encoded = self.encoder.encode(self.samples)
        self.lengths = [len(e) for e in self.encoded]
        self.plan = plan_epoch(
            self.lengths,
            config.train.global_batch,
            seed=config.train.seed,
            epoch=epoch,
            group_by_length=config.train.group_by_length,
        )
        self.epoch = epoch

    def _beta(self, sample: Encoded) -> float:
        method = self.config.method
        if method.beta is not None:
            return method.beta
        return sample.distortion if method.beta_scope == "sample" else self.data.betas[sample.dataset]

    def _optimizer_step(self) -> None:
        started = time.perf_counter()
        epoch, place = divmod(self.step // self.replays, self.per_epoch)
        self._enter_epoch(epoch)
        indices = self.plan[place]
        answer_tokens = sum(len(self.encoded[i].answer) for i in indices)
        lr = learning_rate(self.config.train, self.step, self.total)
        for group in self.lm.engine.optimizer.param_groups:
            group["lr"] = lr
        stats = StepStats()
        batches = [self._batch(micro, answer_tokens) for micro in self._micro_batches(indices)]
        for number, batch in enumerate(batches):
            # Dropout masks follow from the position, so a resumed run draws the same ones without saved RNG states.
            torch.manual_seed(_mix(self.config.train.seed, self.step, number, distributed.rank()))
            self.method.foresee(batches[number + 1] if number + 1 < len(batches) else None)
            stats.merge(self.method.backward(self.lm, batch))
            self.lm.engine.step()
        self.step += 1
        seconds = time.perf_counter() - started
        self.monitor.step(self.step, stats, {
            "data/beta": float(np.mean([self._beta(self.encoded[i]) for i in indices])),
            "lr": lr,
            "grad_norm": float(self.lm.engine.get_global_grad_norm() or 0.0),
            "tokens_per_second": sum(self.lengths[i] for i in indices) / seconds,
            "step_seconds": seconds,
            "memory": peak_memory_mb(self.device),
        })  # fmt: skip

    def _batch(self, micro: list[Encoded], answer_tokens: int) -> Batch:
        multiple = 1 if self.device.type == "cpu" else 8
        batch = collate(
            micro,
            pad_id=self.tokenizer.pad_token_id,
            tokens=self.config.method.tokens,
            beta=[self._beta(s) for s in micro],
            step=self.step,
            # DeepSpeed averages over ranks and accumulation; this undoes it: sum over the global batch's answer tokens
            # divided by their number, however they fall on ranks and micro-batches.
            denominator=answer_tokens / (distributed.world_size() * self.accumulation),
            pad_to_multiple_of=multiple,
            packed=self.config.packs,
        )
        return self.lm.prepare(batch, pad_to_multiple_of=multiple).to(self.device)

    def _micro_batches(self, indices: np.ndarray) -> list[list[Encoded]]:
        dealt = deal(
            indices,
            self.lengths,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
            accumulation=self.accumulation,
        )
        return [[self.encoded[i] for i in micro] or [filler(self.encoded[indices[0]])] for micro in dealt]

    def run_to_the_end(self, signals: Signals) -> dict[str, Any] | None:
        """Resume, train, evaluate, save. Returns the summary, or None after a signal (state saved, requeue written)."""
        config = self.config
        if distributed.rank() == 0:
            self.run.requeue.unlink(missing_ok=True)
        state = self._resume()
        distributed.logger().info(
            "%s on %d samples, %d steps of %d, %d ranks x %d micro-batches, %s, beta %s",
            config.method.name, len(self.samples), self.total, config.train.global_batch, distributed.world_size(),
            self.accumulation, str(self.dtype).removeprefix("torch."),
            ", ".join(f"{name} {beta:.4f}" for name, beta in self.data.betas.items()),
        )  # fmt: skip
        before = state["before"] if state else self._score_untouched()
        spent = state.get("train_seconds", 0.0)
        self.monitor = Monitor(
            self.run, total_steps=self.total, start=self.step, log_every=config.train.log_every,
            config_text=self.run.config.read_text(encoding="utf-8"),
        )  # fmt: skip
        self.watchdog = distributed.Watchdog(timeout_seconds=config.train.rank_timeout, run_dir=self.run.path)
        started = time.perf_counter()
        try:
            while self.step < self.total:
                self._optimizer_step()
                self._beat()
                stop = distributed.any_rank(signals.received is not None) and self._between_minibatches()
                if self._evaluates_now():
                    self._evaluate_dev()
                if stop or self._checkpoints_now():
                    self._save(before, spent + time.perf_counter() - started)
                if stop and self.step < self.total:
                    self._ask_for_requeue(signals.received or "a signal on another rank")
                    return None
            self.monitor.flush()
            if self.best.step == 0:
                save_adapter(self.lm.engine, self.run.adapter)
            return self._finish(before, spent + time.perf_counter() - started)
        finally:
            self.watchdog.stop()
            self.monitor.close()

    def _beat(self) -> None:
        self.watchdog.beat(self.step)

    def _resume(self) -> dict[str, Any]:
        path = distributed.from_main(lambda: latest_good(self.run.checkpoints))
        if path is None:
            return {}
        state = load_checkpoint(self.lm.engine, path)
        self.step = state["step"]
        self.best = Best(**state["best"])
        distributed.logger().info("resumed from %s", path)
        return state

    def _save(self, before: float | None, seconds: float) -> None:
        self.monitor.flush()
        state = {
            "step": self.step,
            "optimizer_steps": optimizer_steps(self.lm.engine),
            "best": vars(self.best),
            "before": before,
            "train_seconds": seconds,
            "betas": self.data.betas,
            "ranks": distributed.world_size(),
        }
        save_checkpoint(self.lm.engine, self.run.checkpoints, state, keep=self.config.train.keep)

    def _between_minibatches(self) -> bool:
        """Where a run may stop: a minibatch's replays share a delta that no checkpoint holds."""
        return self.step % self.replays == 0 or self.step == self.total

    def _checkpoints_now(self) -> bool:
        every = self.config.train.checkpoint_every
        due = every and self.step // every > (self.step - self.replays) // every
        return self.step == self.total or bool(due and self._between_minibatches())

    def _evaluates_now(self) -> bool:
        if self.step == self.total:
            return True
        every = self.config.eval.every
        return every is not None and self.step % max(1, round(every * self.per_epoch)) == 0

    def _ask_for_requeue(self, why: str) -> None:
        if distributed.rank() == 0:
            write_atomically(self.run.requeue, f"{why} at step {self.step}\n")
        distributed.logger().info("%s: saved at step %d of %d; start again to go on", why, self.step, self.total)

    def _score_untouched(self) -> float | None:
        if not self.config.eval.before:
            return None
        with adapter_off(self.module):
            evaluation = self.evaluator.evaluate(self.module, "test", progress=True)
        write_evaluation(self.run.eval, "before", evaluation)
        return evaluation.micro_f1

    def _evaluate_dev(self) -> None:
        if not any(len(s.split("dev")) for s in self.data.sets):
            return
        self.monitor.flush()
        evaluation = self.evaluator.evaluate(self.module, "dev", heartbeat=self._beat)
        self.monitor.scalar(self.step, "dev/micro_f1", evaluation.micro_f1)
        self.monitor.say(f"step {self.step}: dev micro-F1 {evaluation.micro_f1:.4f}")
        if evaluation.micro_f1 > self.best.micro_f1:
            self.best = Best(evaluation.micro_f1, self.step)
            save_adapter(self.lm.engine, self.run.adapter)
            write_evaluation(self.run.eval, "dev", evaluation)

    def _finish(self, before: float | None, seconds: float) -> dict[str, Any]:
        test: Evaluation | None = None
        robustness: dict[str, dict[str, float]] = {}
        if self.config.eval.test:
            load_weights(self.lm.engine, read_adapter(self.module, self.run.adapter), masters=False)
            test = self.evaluator.evaluate(self.module, "test", progress=True, heartbeat=self._beat)
            write_evaluation(self.run.eval, "test", test)
            robustness = self._score_under_noises(test)
        summary = {
            "method": self.config.method.name,
            "dataset": "+".join(s.name for s in self.data.sets),
            "model": self.config.model.name_or_path,
            "seed": self.config.train.seed,
            "before": None if before is None else {"micro_f1": before},
            "after": None if test is None else test.report,
            "robustness": robustness,
            "dev": {"micro_f1": self.best.micro_f1, "step": self.best.step} if self.best.step else None,
            "beta": self.data.betas,
            "steps": self.total,
            "train_seconds": round(seconds, 3),
            "passes": self.method.passes,
            "truncated": self.encoder.truncated,
            "ranks": distributed.world_size(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if distributed.rank() == 0:
            write_json(self.run.summary, summary)
        distributed.barrier()
        return summary

    def _score_under_noises(self, raw: Evaluation) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for noise in self.config.eval.noises:
            evaluation = self.evaluator.evaluate(self.module, "test", noise=noise, progress=True, heartbeat=self._beat)
            evaluation = beside_raw(evaluation, raw)
            write_evaluation(self.run.eval, f"test-{noise}", evaluation)
            found[noise] = {key: evaluation.report[key] for key in ("micro_f1", "gap", "consistency")}
        return found


def load_data(config: Config, run: RunFolder, *, epoch: int = 0) -> RunData:
    """The run's data: rank 0 makes what is not there yet, then every rank reads it."""
    return distributed.main_first(lambda: RunData.load(config, run.data, epoch=epoch))


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers, so that neighbouring steps and ranks share no stream."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
