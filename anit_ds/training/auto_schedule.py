"""`method.schedule: auto`: the schedule that computes the fewest tokens and fetches the fewest weights, and why.

All schedules give the same result, so the choice is one of cost. Counted on the run's first global batch, in tokens
that pass forward and backward through the model; at ZeRO 3 a sweep over the partitioned weights, forward or backward,
counts as much as the tokens that could be computed while it crosses the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from anit_ds.adversarial import Batch
from anit_ds.adversarial.partly_trained import PartlyTrainedLora
from anit_ds.adversarial.rules import METHODS
from anit_ds.adversarial.segments import SegmentAttention
from anit_ds.adversarial.tree import TreeBatch
from anit_ds.config import Config, MethodConfig
from anit_ds.errors import InputError
from anit_ds.training.ds_config import zero_stage
from anit_ds.training.feed import Feed

# A sweep moves 2 bytes per weight while a token takes about 4 operations per weight (LoRA: forward, and backward to
# the input): at 400 TFLOP/s and 50 GB/s per GPU, what a sweep costs is 400e12 / 4 * 2 / 50e9 tokens. An estimate from
# data sheets of an H100 on 400 Gb/s, and within a node, where links are ten times as fast, a tenth of it.
_TOKENS_PER_SWEEP_BETWEEN_NODES = 4000
_TOKENS_PER_SWEEP_IN_NODE = 400
# A tree's attention on a GPU is one masked product, not the flash kernel. No GPU has measured what that costs; until
# one has, a tree must save more than this share to be chosen there.
_MARGIN_ON_GPU = 0.3


@dataclass(frozen=True)
class Candidate:
    """A schedule and what one optimizer step of it costs a rank."""

    schedule: str
    tokens: int
    sweeps: int
    handicap: float = 0.0

    def cost(self, tokens_per_sweep: int) -> float:
        return self.tokens / (1 - self.handicap) + self.sweeps * tokens_per_sweep

    def __str__(self) -> str:
        return f"{self.schedule} {self.tokens} tokens" + (f" in {self.sweeps} sweeps" if self.sweeps else "")


def choose_schedule(
    config: Config, feed: Feed, model: nn.Module, ds_config: dict[str, Any], *, nodes: int
) -> tuple[str, str]:
    """(the schedule to run, a sentence that says why). `nodes` are the machines of the run."""
    batches = feed.batches(0, feed.samples_of(0), losses_of=lambda batch: [0.0] * batch.size)
    found = candidates(config, batches, sharded=zero_stage(ds_config) == 3, on_gpu=feed.device.type != "cpu")
    refusals = {candidate.schedule: _refusal(candidate.schedule, config, model, ds_config) for candidate in found}
    possible = [candidate for candidate in found if not refusals[candidate.schedule]]
    told = "per optimizer step and rank: " + ", ".join(str(candidate) for candidate in possible)
    left_out = [f"{schedule} is left out: {why}" for schedule, why in refusals.items() if why]
    return cheapest(possible, nodes=nodes), "; ".join([told, *left_out])


def cheapest(found: Sequence[Candidate], *, nodes: int) -> str:
    """The name of the schedule that costs least on so many machines."""
    per_sweep = _TOKENS_PER_SWEEP_BETWEEN_NODES if nodes > 1 else _TOKENS_PER_SWEEP_IN_NODE
    return min(found, key=lambda candidate: candidate.cost(per_sweep)).schedule


def candidates(config: Config, step: Sequence[Batch], *, sharded: bool, on_gpu: bool) -> list[Candidate]:
    """What each schedule that the method allows would compute in an optimizer step, three_pass first.

    step: a rank's micro-batches, on the host. sharded: whether weights are partitioned, so that sweeps count.
    """
    method, batches = config.method, [TreeBatch.of(batch) for batch in step]
    passes, micro = METHODS[method.name].passes(method), len(batches)
    own = sum(sum(b.lengths or ()) for b in batches)
    padded = own if config.train.padding_free else sum(b.size * max(b.lengths or ()) for b in batches)

    def swept(schedule: str, *, trunk: bool = False) -> int:
        return sweeps(method, schedule, micro, trunk=trunk) if sharded else 0

    found = [Candidate("three_pass", passes * padded, swept("three_pass"))]
    if method.can_be_pipelined and config.lora is not None and micro > 1:
        found.append(Candidate("pipelined", passes * padded, swept("pipelined")))
    trunk = sum(b.trunk.layout.tokens for b in batches if b.trunk) if config.attacks_behind_context else 0
    if trunk:
        behind = sum(b.apart.layout.tokens for b in batches)
        tokens = trunk + passes * behind
    else:
        alike = sum(b.whole.layout.tokens for b in batches)
        tokens = alike + (passes - 1) * own if _has_clean_rows(method) else passes * own
    handicap = _MARGIN_ON_GPU if on_gpu else 0.0
    return [*found, Candidate("prefix_tree", tokens, swept("prefix_tree", trunk=trunk > 0), handicap)]


def sweeps(method: MethodConfig, schedule: str, micro_batches: int, *, trunk: bool) -> int:
    """How often an optimizer step gathers all weights at ZeRO 3: once a forward pass and once a backward pass.

    trunk: whether a prefix tree has a trunk, which is a pass of its own.
    """
    if schedule == "pipelined":
        return 2 * (micro_batches + 1)
    return 2 * (_forwards(method) + trunk) * micro_batches


def _forwards(method: MethodConfig) -> int:
    """Forward passes of a micro-batch: joined rows share one."""
    passes = METHODS[method.name].passes(method)
    return passes - 1 if passes > 1 and method.passes == "joined" and _has_clean_rows(method) else passes


def _has_clean_rows(method: MethodConfig) -> bool:
    """Whether one of the passes takes the embeddings as they are, in which a tree shares tokens without a trunk."""
    return method.name in ("sft", "noisy_sft", "random") or (method.name == "anit" and method.gradient == "attack")


def no_tree_for(config: Config, ds_config: Mapping[str, Any], *, head_is_trained: bool) -> str | None:
    """Why `auto` takes no prefix tree, as far as it shows without a model's weights."""
    if config.lora_dropout > 0:
        return "lora.dropout > 0 would share its masks between samples"
    if head_is_trained and ds_config.get("zero_optimization", {}).get("offload_optimizer"):
        return "the language-model head is trained under an offloaded optimizer"
    return None


def _refusal(schedule: str, config: Config, model: nn.Module, ds_config: dict[str, Any]) -> str | None:
    """Why the model cannot be trained in a schedule, as far as it shows before there is an engine."""
    if schedule == "prefix_tree":
        head = model.get_output_embeddings()  # type: ignore[operator]
        trained = any(p.requires_grad for p in head.parameters())
        if why := no_tree_for(config, ds_config, head_is_trained=trained):
            return why
    try:
        if schedule == "prefix_tree":
            SegmentAttention(model, trees=True, asked_by="method.schedule: prefix_tree").remove()
        elif schedule == "pipelined":
            PartlyTrainedLora(model).remove()
    except InputError as refused:
        return str(refused)
    return None
