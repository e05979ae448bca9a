"""The model of a run: loaded, made trainable, put under its engine, with the method that will train it attached."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from anit_ds.adversarial import Method, PerturbableLM, embedding_scale
from anit_ds.adversarial.assembly import attach_method, perturbable
from anit_ds.adversarial.rehearsal import rehearse
from anit_ds.config import Config
from anit_ds.errors import InputError
from anit_ds.modeling import check_tables, load_model, make_trainable, use_activation_checkpointing
from anit_ds.ranks import distributed
from anit_ds.training.auto_schedule import choose_schedule
from anit_ds.training.ds_config import zero_stage
from anit_ds.training.engine import build_engine, gathered_module, sharded_loading
from anit_ds.training.feed import Feed

logger = logging.getLogger(__name__)


def build_model(
    config: Config, feed: Feed, ds_config: dict[str, Any], dtype: torch.dtype, total_steps: int
) -> tuple[Config, PerturbableLM, Method]:
    """(the configuration with its schedule decided, the model under DeepSpeed, its method). The feed packs as decided.

    Raises InputError for a model that cannot be loaded, or not be trained on the feed's samples.
    """
    stage = zero_stage(ds_config)
    with sharded_loading(ds_config):
        # ZeRO 3 takes each weight apart as it is loaded, and wants it on the host.
        model = load_model(config.model, dtype, feed.device if stage < 3 else None)
    ids = (max(*view.prompt, *view.answer) for views in feed.samples for view in views)
    check_tables(model, feed.pad_id, ids, config.data.max_length)
    scale = 1.0
    if config.method.eps_unit != "absolute":
        with gathered_module(model.get_input_embeddings()):  # type: ignore[operator]
            scale = embedding_scale(model, config.method.eps_unit)
    model = make_trainable(model, config)
    if config.train.activation_checkpointing:
        use_activation_checkpointing(model)
    config, lm = _under_engine(model, config, feed, ds_config)
    return config, lm, attach_method(lm, config, scale=scale, total_steps=total_steps)


def _under_engine(
    model: nn.Module, config: Config, feed: Feed, ds_config: dict[str, Any]
) -> tuple[Config, PerturbableLM]:
    """The model under DeepSpeed, in a schedule that its rehearsal allows."""
    auto = config.method.schedule == "auto"
    if auto:
        nodes = len(distributed.nodes())
        # Ranks have batches of their own, and must not come to schedules of their own.
        chosen = distributed.from_main(lambda: choose_schedule(config, feed, model, ds_config, nodes=nodes))
        config = _with_schedule(config, *chosen)
    lm = build_engine(model, config, ds_config)
    try:
        _rehearse(lm, config, feed)
    except InputError as refused:
        if not auto or config.method.schedule != "prefix_tree":
            raise
        config = _with_schedule(config, "three_pass", f"prefix_tree is left out: {refused}")
        engine = lm.engine
        lm.remove()
        lm = perturbable(model, config)
        lm.run_under(engine)
        _rehearse(lm, config, feed)
    return config, lm


def _rehearse(lm: PerturbableLM, config: Config, feed: Feed) -> None:
    feed.packed = config.packs
    rehearse(lm, lm.prepare(feed.pair()).to(feed.device))


def _with_schedule(config: Config, schedule: str, why: str) -> Config:
    logger.info("method.schedule: auto is %s (%s)", schedule, why)
    return config.model_copy(update={"method": config.method.model_copy(update={"schedule": schedule})})
