"""`SharedPrefixLM`: the context of a prompt runs forward once and backward once, however many passes a method takes.

In a causal model nothing before the first perturbed token feels the perturbation. With the instruction last and the
scope on it, a sample is a context (question, format, options, text) and a suffix (instruction, `Answer:`, answer), and
all that a method does happens in the suffix:

    context   one forward; its keys and values are kept
    attacks   the suffix on these keys and values as constants
    training  the suffix, clean and perturbed, on the same keys and values as leaves that collect their gradient
    context   one backward from the collected gradient

The result is that of whole sequences, to rounding. A PerturbableLM to its methods: embeddings, perturbations and
gradients keep the whole batch's shape [B, T, D], so scope, norms and delta0's random numbers are the same bits as ever.
With LoRA dropout, attacks get keys and values of their own from a context without dropout, and the clean and the
perturbed suffixes share the dropout mask of the one training context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.perturb import AttackPoint, Input, PerturbableLM, uses_dropout, without_dropout
from anit_ds.errors import InputError

# What a layer's keys and values can be cut at: attention that masks by distance still sees true distances, because a
# row's context ends where its suffix begins.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, kw_only=True)
class SplitBatch(Batch):
    """A batch whose rows are cut before their first token in scope into a context and a suffix.

    Contexts are padded to C tokens on the left and suffixes to S on the right, so that every row's own tokens are
    neighbours in [context; suffix]. C is at least 1: where no row has a context the pass still runs, on padding,
    because under ZeRO-3 all ranks must take part in it.
    """

    context_index: Tensor  # [B, C] int64: where in the row each context token stands
    context_attended: Tensor  # [B, C] bool
    suffix_index: Tensor  # [B, S] int64
    suffix_attended: Tensor  # [B, S] bool
    suffix_targets: Tensor  # [A] int64: the predicting positions, counted in the suffix


def split_at_scope(batch: Batch, *, pad_to_multiple_of: int = 1) -> SplitBatch:
    """Cut each row before its first token in scope; a row without scope is all suffix.

    Do it where the batch is made, on the CPU: the two widths are read from it. Raises ValueError for a packed batch,
    and where a loss depends on a token before the scope, which the context's pass would not compute.
    """
    if batch.lengths is not None:
        raise ValueError("the batch is packed; a shared prefix needs padded rows")
    starts = torch.where(batch.scope.any(1), batch.scope.long().argmax(1), 0)
    before = torch.arange(batch.scope.shape[1], device=starts.device) < starts[:, None]
    context, suffix = batch.attended & before, batch.attended & ~before
    if not suffix[batch.target_rows, batch.target_positions].all():
        raise ValueError("a token before the scope predicts a token of the answer; put the perturbed tokens last")
    context_index, context_attended = _compact(context, pad_to_multiple_of, left=True)
    suffix_index, suffix_attended = _compact(suffix, pad_to_multiple_of, left=False)
    return SplitBatch(
        **vars(batch),
        context_index=context_index,
        context_attended=context_attended,
        suffix_index=suffix_index,
        suffix_attended=suffix_attended,
        suffix_targets=(suffix.long().cumsum(1) - 1)[batch.target_rows, batch.target_positions],
    )


def _compact(chosen: Tensor, multiple: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """The places of the chosen tokens [B, T], moved together: (index [B, W], which of them are chosen)."""
    width = max(1, int(chosen.sum(1).max()))
    width = min(-(-width // multiple) * multiple, chosen.shape[1])
    order = (chosen if left else ~chosen).long().argsort(dim=1, stable=True)
    index = order[:, -width:] if left else order[:, :width]
    return index, chosen.gather(1, index)


@dataclass
class _Context:
    """The keys and values [B, heads, C, width] of a batch's contexts, two tensors a layer."""

    outputs: tuple[Tensor, ...]  # as the model returned them, with their graph
    end: Tensor  # an empty tensor that depends on everything the model computed
    leaves: tuple[Tensor, ...]  # the same values; what flows back into the suffixes' keys and values gathers here
    pending: dict[Any, int]  # ZeRO-3's count of each module's backward passes to come

    @classmethod
    def of(cls, outputs: Sequence[Tensor], end: Tensor, module: nn.Module) -> _Context:
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
        """Whether anything in the context's pass has a gradient to come."""
        return any(out.requires_grad for out in self.outputs)

    def loss(self, *, reach_everything: bool) -> Tensor:
        """A zero whose gradient is what the leaves collected.

        `reach_everything` sends a gradient of zero to what no key or value depends on, the end of the last layer.
        """
        moved = [(out, leaf.grad) for out, leaf in zip(self.outputs, self.leaves, strict=True) if out.requires_grad]
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


class SharedPrefixLM(PerturbableLM):
    """A PerturbableLM on `SplitBatch`es; `method.schedule: shared_prefix`.

    A batch's context lives from the first call with it to its last `backward`; parameters must not move in between.
    Perturbations outside `batch.scope` are not seen (NEFTune's would be). Raises InputError for a model whose layers
    keep anything but plain keys and values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        _check_layers(model)
        # Registered before DeepSpeed's own hooks: keys and values are what the engine sees returned, so that it
        # prepares its backward pass when their gradient arrives.
        self._cache_hook = model.register_forward_hook(self._return_keys_and_values)
        self._wants_context = False
        self._keys_and_values: tuple[Tensor, ...] = ()
        self._batch: Batch | None = None
        self._context: _Context | None = None
        self._attacked: tuple[Tensor, ...] | None = None

    def remove(self) -> None:
        super().remove()
        self._cache_hook.remove()

    def prepare(self, batch: Batch, *, pad_to_multiple_of: int = 1) -> Batch:
        return split_at_scope(batch, pad_to_multiple_of=pad_to_multiple_of)

    def input_gradient(
        self, batch: Batch, start: Callable[[Tensor], Tensor] = lambda e: e.clone()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As PerturbableLM's; g is zero on the context."""
        self._enter(batch)
        e = self.embeddings(batch)
        x = AttackPoint(start)(e)
        self._keys_and_values = self._attack_context()
        try:
            with without_dropout(self.module):
                (losses,) = self._forward(self.module, [(self._suffix, self._suffix_of(x))])
                (g,) = torch.autograd.grad(losses.sum() * self.attack_scale(x.dtype), x)
        finally:
            self._parts, self._keys_and_values = (), ()
        return e, x.detach(), g

    def losses_of(self, parts: Sequence[tuple[Batch, Input]]) -> list[Tensor]:
        """As PerturbableLM's, for parts of one batch: they share its context."""
        batch = parts[0][0]
        if any(other is not batch for other, _ in parts):
            raise ValueError("a pass on a shared prefix takes one batch at a time")
        self._enter(batch)
        seen = [given(self.embeddings(batch)) if callable(given) else given for _, given in parts]
        self._keys_and_values = self._training_context().leaves
        try:
            return super().losses_of([(self._suffix, None if x is None else self._suffix_of(x)) for x in seen])
        finally:
            self._keys_and_values = ()
            if not torch.is_grad_enabled():  # a look at the loss: no backward will end this context's life
                self._forget()

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        context = self._training_context()
        super().backward(loss, last=last and not context.trained)
        if not last:
            return
        self._forget()
        if not context.trained:
            return
        offload = False
        if self.engine is not None:
            # An offloaded optimizer takes a gradient over in the step's last backward and forgets those of parameters
            # that have no part in it.
            offload = self.engine.zero_offload_optimizer() is not None
            if offload and any(p.requires_grad for p in self.head.module.parameters()):
                raise InputError(
                    "method.schedule: shared_prefix cannot train the language-model head under an offloaded optimizer; "
                    "use three_pass, or leave the head out of lora.modules_to_save"
                )
            # ZeRO adds a gradient to the ones before it only where a forward of the engine came between; this is what
            # such a forward tells it.
            if hasattr(self.engine.optimizer, "clear_backward_seen_flag"):
                self.engine.optimizer.clear_backward_seen_flag()
        super().backward(context.loss(reach_everything=offload), last=True)

    def _enter(self, batch: Batch) -> None:
        """Make `batch` the current one: the same object keeps the context it has."""
        if self._batch is batch:
            return
        self._forget()
        self._batch = batch
        split = batch if isinstance(batch, SplitBatch) else split_at_scope(batch)
        self._split = split
        self._positions = split.position_ids()
        self._suffix = replace(
            Batch(**{field.name: getattr(split, field.name) for field in fields(Batch)}),
            input_ids=split.input_ids.gather(1, split.suffix_index),
            attended=split.suffix_attended,
            scope=split.scope.gather(1, split.suffix_index),
            target_positions=split.suffix_targets,
        )

    def _forget(self) -> None:
        self._batch = self._context = self._attacked = None

    def _suffix_of(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, S, D]"""
        return x.gather(1, self._split.suffix_index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def _training_context(self) -> _Context:
        if self._context is None:
            assert self._batch is not None, "backward without losses"
            *outputs, end = self._run_context(self.engine or self.module)
            self._context = _Context.of(outputs, end, self.module)
        return self._context

    def _attack_context(self) -> tuple[Tensor, ...]:
        if not uses_dropout(self.module):
            return self._training_context().constants
        if self._attacked is None:
            with torch.no_grad(), without_dropout(self.module):
                self._attacked = self._run_context(self.module)[:-1]
        return self._attacked

    def _run_context(self, module: Any) -> tuple[Tensor, ...]:
        """Keys and values of each layer, then the empty logits."""
        split = self._split
        self._parts, self._wants_context = (), True
        try:
            with self.head.off():
                keys_and_values: tuple[Tensor, ...] = module(
                    input_ids=split.input_ids.gather(1, split.context_index),
                    attention_mask=split.context_attended.long(),
                    position_ids=self._positions.gather(1, split.context_index),
                    # Without the configuration: every layer, a sliding one too, then keeps all its keys and values.
                    past_key_values=DynamicCache(),
                    use_cache=True,
                )
        finally:
            self._wants_context = False
        return keys_and_values

    def _return_keys_and_values(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._wants_context:
            return output
        cache = getattr(output, "past_key_values", None)
        layers = getattr(cache, "layers", [])
        if not layers or any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers):
            raise _unsupported(module, "does not keep plain keys and values in every layer")
        return *(tensor for layer in layers for tensor in (layer.keys, layer.values)), output.logits

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """`batch` holds one or more copies of the suffixes; each gets the context's keys and values."""
        split, copies = self._split, batch.size // self._suffix.size

        def repeat(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * copies) if copies > 1 else tensor

        flat = [repeat(t) for t in self._keys_and_values]
        return {
            "input_ids": batch.input_ids,
            "attention_mask": torch.cat([repeat(split.context_attended), batch.attended], dim=1).long(),
            "position_ids": repeat(self._positions.gather(1, split.suffix_index)),
            "past_key_values": DynamicCache(list(zip(flat[::2], flat[1::2], strict=True))),
            "use_cache": True,
        }


def _check_layers(model: Any) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if odd:
        raise _unsupported(model, f"has {', '.join(odd)} layers")
    if getattr(base, "_is_stateful", False):
        raise _unsupported(model, "keeps a state that is no list of keys and values")
    if getattr(config, "num_kv_shared_layers", 0):
        raise _unsupported(model, "shares keys and values between layers")


def _unsupported(model: Any, why: str) -> InputError:
    name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return InputError(
        f"method.schedule: shared_prefix needs a model with plain causal or sliding attention and no activation "
        f"checkpointing, and {name} {why}; use three_pass"
    )
