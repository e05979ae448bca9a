"""An optimizer step on N ranks, played through: what is gathered when, who waits for what, and who is slowest.

At ZeRO 3 a rank computes unit by unit (a decoder layer, the embeddings, the head) and gathers the weights of the next
one meanwhile, so a unit begins when it is there and the one before it is done. DeepSpeed keeps a unit whose next use in
the same forward and backward is near. Every collective is NCCL's ring, by NCCL's own model of its cost. Gradients are
summed when a micro-batch's backward is over; nothing hides that. docs/cost.md lists what is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from anit_ds.planning.footprint import EMBEDDINGS, Unit, Visit, Weights

GB = 1e9
# What is assumed of a GPU where nobody says otherwise: GB/s to other nodes (a card of 400 Gb/s), and TFLOP/s that an
# H100 sustains in half precision, not what its data sheet says.
BANDWIDTH, TFLOPS = 50.0, 400.0
GPUS_A_NODE = 8
_IN_NODE = 400.0  # GB/s that a GPU has to the others of its node: NVLink of an H100, as nccl-tests sees it
# A ring's protocols in NCCL's tuning table (src/graph/tuning.cc, 2.19 on), in microseconds: to begin, for a hop inside
# a node, for one between nodes; and the share of the bandwidth that is payload.
_PROTOCOLS = ((14.0, 1.9, 4.0, 0.92), (8.4, 3.4, 14.0, 1.0))  # LL128, Simple
# DeepSpeed's own defaults, in elements.
_PREFETCH, _REUSE, _PERSISTENT = 50_000_000, 1_000_000_000, 100_000


@dataclass(frozen=True)
class Cluster:
    """What a run gets. memory in GB a rank; bandwidth in GB/s of a GPU to other nodes; tflops that a rank sustains."""

    ranks: int
    memory: float
    bandwidth: float
    tflops: float

    @property
    def nodes(self) -> int:
        return math.ceil(self.ranks / GPUS_A_NODE)

    def collective_seconds(self, size: float) -> float:
        """An all-gather that makes `size` bytes on every rank, or a reduce-scatter of as many.

        A byte enters a node once, over the network card of one of its GPUs, so a node has the bandwidth of them all.
        """
        if self.ranks == 1 or not size:
            return 0.0
        nodes = self.nodes
        bandwidth = min(_IN_NODE, self.bandwidth * GPUS_A_NODE) if nodes > 1 else _IN_NODE
        moved = size * (self.ranks - 1) / self.ranks / (bandwidth * GB)
        across = nodes if nodes > 1 else 0
        return min(
            (begin + (self.ranks - 1 - across) * inside + across * between) / 1e6 + moved / payload
            for begin, inside, between, payload in _PROTOCOLS
        )


@dataclass(frozen=True)
class Step:
    """An optimizer step. gathered: bytes that a rank gathers; seconds of computing and of the network, each alone."""

    seconds: float
    compute_seconds: float
    network_seconds: float
    gathered: int

    @classmethod
    def mean(cls, steps: Sequence[Step]) -> Step:
        return cls(
            fmean(step.seconds for step in steps),
            fmean(step.compute_seconds for step in steps),
            fmean(step.network_seconds for step in steps),
            round(fmean(step.gathered for step in steps)),
        )


def play(
    visits: Sequence[Visit], weights: Weights, cluster: Cluster, zero: Mapping[str, Any], *, stage: int, itemsize: int,
    share: float, reductions: int,
) -> Step:  # fmt: skip
    """`visits` in time. share: the slowest rank's work relative to what was counted; reductions: of the gradients.

    zero: DeepSpeed's section `zero_optimization`; itemsize: bytes of a weight.
    """
    elements = list(gathered(visits, weights, zero)) if stage == 3 and cluster.ranks > 1 else [0] * len(visits)
    bucket = int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)) or math.inf
    arrived = done = begun_before = network = 0.0
    for visit, count in zip(visits, elements, strict=True):
        pieces = math.ceil(count / bucket) or 1
        takes = pieces * cluster.collective_seconds(count * itemsize / pieces)
        network += takes
        if takes:
            arrived = max(arrived, begun_before) + takes  # asked for while the unit before is computed
        begun_before = max(done, arrived)
        done = begun_before + visit.operations * share / (cluster.tflops * 1e12)
    sums = reductions * cluster.collective_seconds(4 * weights.trained)
    if stage < 3 and cluster.ranks > 1:
        # An all-reduce is two collectives, and so are the sums and the weights that come back from their owners.
        sums += cluster.collective_seconds(weights.trained * (itemsize if stage else 4))
    computes = sum(visit.operations for visit in visits) * share / (cluster.tflops * 1e12)
    return Step(done + sums, computes, network + sums, sum(elements) * itemsize)


def gathered(visits: Sequence[Visit], weights: Weights, zero: Mapping[str, Any]) -> Iterator[int]:
    """Elements that ZeRO 3 gathers at each visit: none where it kept them since the visit before in the same pass."""
    reuse = int(zero.get("stage3_max_reuse_distance", _REUSE))
    persistent = int(zero.get("stage3_param_persistence_threshold", _PERSISTENT))
    passed, seen = 0, dict[Unit, int]()
    for at, visit in enumerate(visits):
        size = weights.of(visit.unit, above=persistent)
        if _begins_a_pass(visits, at):
            seen = {}
        kept = visit.unit in seen and passed - seen[visit.unit] < reuse
        yield 0 if kept else size
        passed += size
        seen[visit.unit] = passed


def _begins_a_pass(visits: Sequence[Visit], at: int) -> bool:
    """DeepSpeed knows the order of modules from one call of the model to the next."""
    after = visits[at + 1] if at + 1 < len(visits) else None
    return visits[at].unit == EMBEDDINGS and after is not None and after.unit == 0 and not after.backward
