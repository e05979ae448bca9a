"""`PrefixTreeLM`: tokens that samples or passes share are computed once; `schedule: prefix_tree`.

The samples of a task begin alike, and in a causal model nothing before the first perturbed token feels a perturbation.
So a `TreeBatch` is run as a tree: a run of tokens that samples share stands once in a packed row, and, where the
perturbed tokens stand late (instruction last), all that stands before them is the trunk:

    trunk     one forward; its keys and values are kept
    attacks   what stands behind it, on these keys and values as constants
    training  what stands behind it, clean and perturbed, on the same ones as leaves that collect their gradient
    trunk     one backward from the collected gradient

Without a trunk (plain fine-tuning, the paper's order) each pass is one row and an ordinary backward. The result is that
of whole sequences, to rounding. A PerturbableLM to its methods: embeddings, perturbations and gradients have the packed
batch's shape [1, T, D], so scope, norms and delta0's random numbers are the same bits as ever. LoRA dropout draws one
mask for what samples or passes share; attacks get a trunk without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.dropout import recomputes_reentrantly
from anit_ds.adversarial.perturb import AttackPoint, Input, PerturbableLM, as_seen
from anit_ds.adversarial.segments import KeysAndValues, SegmentAttention, Segments
from anit_ds.adversarial.tree import Row, TreeBatch, lay_together
from anit_ds.errors import InputError


@dataclass
class _Trunk:
    """The keys and values [1, H_kv, n, d] of a batch's trunk, two tensors per layer."""

    outputs: tuple[Tensor, ...]  # as the model returned them, with their graph
    end: Tensor  # an empty tensor that depends on everything the model computed
    leaves: tuple[Tensor, ...]  # the same values; what flows back into the passes' keys and values gathers here
    pending: dict[Any, int]  # ZeRO-3's count of each module's backward passes to come

    @classmethod
    def of(cls, outputs: Sequence[Tensor], end: Tensor, module: nn.Module) -> _Trunk:
        if end.requires_grad and not any(out.requires_grad for out in outputs) and recomputes_reentrantly(module):
            raise InputError(
                "a prefix tree keeps keys and values that activation checkpointing computes without their graph; "
                'use it with {"use_reentrant": False}'
            )
        leaves = tuple(t.detach().requires_grad_(t.requires_grad) for t in outputs)
        # ZeRO-3 counts in each module the backward passes to come, to release its weights after the last one, and
        # starts to count anew at every forward; ours come between this forward and its backward.
        pending: dict[Any, int] = {m: m.__dict__["ds_grads_remaining"] for m in module.modules() if _is_counting(m)}
        return cls(tuple(outputs), end, leaves, pending)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in self.leaves)

    @property
    def trained(self) -> bool:
        """Whether anything in the trunk's pass has a gradient to come."""
        return any(out.requires_grad for out in self.outputs)

    def loss(self, *, reach_everything: bool) -> Tensor:
        """A zero whose gradient is what the leaves collected.

        `reach_everything` sends a gradient of zero to what no key or value depends on, the end of the last layer.
        """
        moved = [
            (out, torch.zeros_like(out) if leaf.grad is None else leaf.grad)  # no sample of the batch had a trunk
            for out, leaf in zip(self.outputs, self.leaves, strict=True)
            if out.requires_grad
        ]
        if reach_everything:
            moved.append((self.end, torch.zeros_like(self.end)))
        for module, count in self.pending.items():
            module.ds_grads_remaining = count
        outputs, gradients = zip(*moved, strict=True)
        result: Tensor = _Collected.apply(gradients, *outputs)
        return result


def _is_counting(module: nn.Module) -> bool:
    return "ds_grads_remaining" in module.__dict__


class _Collected(torch.autograd.Function):
    """0, with given gradients: they carry the engine's loss scale already, so the incoming one is not applied again."""

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


class PrefixTreeLM(PerturbableLM):
    """A PerturbableLM on `TreeBatch`es.

    It takes the batches that `prepare` returns. keeps_trunk: see `TreeBatch.of`. A batch's trunk lives from the first
    call with it to its last `backward`; parameters must not move in between. Perturbations on the trunk, which is
    outside `batch.scope`, are not seen.
    Raises InputError for a model whose attention is more than causal masks, sliding windows and soft caps, so far as
    its configuration says; what else is not as whole samples have it, `rehearse(lm, lm.prepare(batch))` finds.
    """

    def __init__(self, model: nn.Module, *, keeps_trunk: bool | None = None) -> None:
        super().__init__(model)
        self.keeps_trunk = keeps_trunk
        self._segments = SegmentAttention(model, trees=True, asked_by="method.schedule: prefix_tree")
        # Registered before DeepSpeed's own hooks: keys and values are what the engine sees returned, so that it
        # prepares its backward pass when their gradient arrives.
        self._trunk_hook = model.register_forward_hook(self._return_keys_and_values)
        self._keeping: KeysAndValues | None = None  # what the trunk's own pass fills
        self._tree: TreeBatch | None = None
        self._trunk: _Trunk | None = None
        self._attacked: tuple[Tensor, ...] | None = None

    def remove(self) -> None:
        super().remove()
        self._trunk_hook.remove()

    def prepare(self, batch: Batch) -> Batch:
        return TreeBatch.of(batch, keeps_trunk=self.keeps_trunk)

    def _attack_pass(self, batch: Batch) -> Callable[[AttackPoint], Tensor]:
        """As PerturbableLM's, behind the trunk; e, x and g are zero on it."""
        tree = self._enter(batch)
        kept = self._attack_trunk() if tree.trunk else ()
        return lambda point: self._run(self.module, tree, [point], kept)

    def _training_pass(self, parts: Sequence[tuple[Batch, Input]]) -> Tensor:
        """As PerturbableLM's, for parts of one batch: they share its trunk."""
        batch = parts[0][0]
        if any(other is not batch for other, _ in parts):
            raise ValueError("a pass on a prefix tree takes one batch at a time")
        tree = self._enter(batch)
        with self._plain_again_if_it_fails():
            kept = self._training_trunk().leaves if tree.trunk else ()
            logits = self._run(self._trained_through(), tree, [given for _, given in parts], kept)
        if not torch.is_grad_enabled():  # a look at the loss: no backward will end this trunk's life
            self._end_pass()
        return logits

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        trunk = self._trunk
        super().backward(loss, last=last and not (trunk and trunk.trained))
        if not last:
            return
        self._forget()
        if trunk is None or not trunk.trained:
            return
        offload = False
        if self.engine is not None:
            # An offloaded optimizer takes a gradient over in the step's last backward and forgets those of parameters
            # that have no part in it.
            offload = self.engine.zero_offload_optimizer() is not None
            if offload and any(p.requires_grad for p in self.head.module.parameters()):
                raise InputError(
                    "method.schedule: prefix_tree cannot train the language-model head under an offloaded optimizer; "
                    "use three_pass, or LoRA without the head"
                )
            # ZeRO adds a gradient to the ones before it only where a forward of the engine came between; this is what
            # such a forward tells it.
            if hasattr(self.engine.optimizer, "clear_backward_seen_flag"):
                self.engine.optimizer.clear_backward_seen_flag()
        super().backward(trunk.loss(reach_everything=offload), last=True)

    def _enter(self, batch: Batch) -> TreeBatch:
        """Make `batch` the current one: the same object keeps the trunk it has."""
        if not isinstance(batch, TreeBatch):
            raise TypeError("a PrefixTreeLM takes the batches that its `prepare` returns")
        if self._tree is not batch:
            self._forget()
            self._tree = batch
        return batch

    def _end_pass(self) -> None:
        super()._end_pass()
        self._forget()

    def _forget(self) -> None:
        self._tree = self._trunk = self._attacked = None

    def _run(self, module: Any, tree: TreeBatch, inputs: Sequence[Input], kept: tuple[Tensor, ...]) -> Tensor:
        """All parts' logits [A, V]: one row with a part for each of `inputs`, behind the kept trunk."""
        rows = [tree.whole if given is None else tree.apart for given in inputs]
        row = lay_together(rows)

        def replace_parts(e: Tensor) -> Tensor:
            parts = e.split([r.layout.tokens for r in rows], dim=1)
            seen = [_in_row(tree, *part) for part in zip(rows, parts, inputs, strict=True)]
            return torch.cat(seen, dim=1)

        self._replacement = None if all(given is None for given in inputs) else replace_parts
        with self.head.only_at(torch.zeros_like(row.targets), row.targets):
            logits: Tensor = module(**self._arguments_of(tree, row, Segments(row.layout, _by_layer(kept)))).logits
        return logits

    @staticmethod
    def _arguments_of(tree: TreeBatch, row: Row, segments: Segments) -> dict[str, Any]:
        return {
            "input_ids": tree.input_ids[:, row.index],
            "position_ids": row.positions[None],
            "use_cache": False,
            **SegmentAttention.of_segments(segments, row.index.device),
        }

    def _training_trunk(self) -> _Trunk:
        if self._trunk is None:
            *outputs, end = self._run_trunk(self._trained_through())
            self._trunk = _Trunk.of(outputs, end, self.module)
        return self._trunk

    def _attack_trunk(self) -> tuple[Tensor, ...]:
        if not self.dropout.matters:
            return self._training_trunk().constants
        if self._attacked is None:
            with torch.no_grad(), self.dropout.off():
                self._attacked = self._run_trunk(self.module)[:-1]
        return self._attacked

    def _run_trunk(self, module: Any) -> tuple[Tensor, ...]:
        """Keys and values of each layer, then the empty logits."""
        assert self._tree is not None and self._tree.trunk is not None
        row = self._tree.trunk
        self._keeping, self._replacement = {}, None
        try:
            with self.head.off():
                keys_and_values: tuple[Tensor, ...] = module(
                    **self._arguments_of(self._tree, row, Segments(row.layout, keep=self._keeping))
                )
        finally:
            self._keeping = None
        return keys_and_values

    def _return_keys_and_values(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._keeping is None:
            return output
        return *(tensor for layer in sorted(self._keeping) for tensor in self._keeping[layer]), output.logits


def _in_row(tree: TreeBatch, row: Row, clean: Tensor, given: Input) -> Tensor:
    """What the first block sees of a part of the row, whose embeddings are `clean` [1, n, D]."""
    if callable(given):
        e = clean.new_zeros(1, tree.input_ids.shape[1], clean.shape[-1])
        given = given(e.index_copy(1, row.index, clean.detach()))
    return as_seen(clean, None if given is None else given[:, row.index])


def _by_layer(flat: tuple[Tensor, ...]) -> KeysAndValues:
    return dict(enumerate(zip(flat[::2], flat[1::2], strict=True)))
