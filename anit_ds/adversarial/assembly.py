"""A run's model and method put together as its configuration has them: for `anit train`, which runs the step, and for
`anit plan`, which counts it.

Two halves, because DeepSpeed takes the model over between them.
"""

from __future__ import annotations

from torch import nn

from anit_ds.adversarial.method import build_method
from anit_ds.adversarial.methods.base import Method
from anit_ds.adversarial.perturb import PerturbableLM
from anit_ds.adversarial.prefix_tree import PrefixTreeLM
from anit_ds.config import Config


def perturbable(model: nn.Module, config: Config) -> PerturbableLM:
    """The model ready for the run's batches and its schedule, which is decided.

    Raises InputError for a model whose samples cannot lie in one row.
    """
    if config.method.schedule == "prefix_tree":
        lm: PerturbableLM = PrefixTreeLM(model, keeps_trunk=config.attacks_behind_context)
    else:
        lm = PerturbableLM(model)
    lm.checkpoint_attack = config.train.checkpoint_attack
    if config.packs:
        lm.take_packed_batches()
    else:
        lm.spare_masks()
    return lm


def attach_method(lm: PerturbableLM, config: Config, *, scale: float, total_steps: int) -> Method:
    """The configured method, on a model made ready for it; arguments as `build_method`'s.

    Raises InputError for a model that the method cannot train.
    """
    method = build_method(config.method, seed=config.train.seed, scale=scale, total_steps=total_steps)
    method.attach(lm)
    return method
