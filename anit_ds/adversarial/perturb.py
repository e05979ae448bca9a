"""`PerturbableLM`: a causal LM whose input embeddings can be replaced and differentiated, through one forward hook.

The hook sits on the module that `get_input_embeddings()` returns, so what it puts in place of the embeddings is what
the first block sees (transformers 5 scales Gemma's embeddings inside that module; Granite multiplies behind it, delta
too). A method is made of calls such as:

    e, x, g = lm.input_gradient(batch, start)      # an attack pass: no parameter gradient is touched
    losses  = lm.losses(batch, inputs=(None, x))   # a training pass over clean and perturbed rows together
    lm.backward(loss)                              # gradients for the optimizer

Batches may be padded or packed; at the first packed one the model's attention learns to keep samples apart.

The model is a plain `nn.Module` (any training loop) or a DeepSpeed engine (the trainer): the attack goes through
`engine.module`, training passes through the engine, as ZeRO needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from anit_ds.adversarial.answers import answer_losses
from anit_ds.adversarial.batch import Batch
from anit_ds.adversarial.dropout import DropoutSwitch, without_checkpointing
from anit_ds.adversarial.head import AnswerHead
from anit_ds.adversarial.join import join, join_tokens, split_tokens
from anit_ds.adversarial.segments import SegmentAttention
from anit_ds.errors import InputError

# What a pass sees of a batch: its clean embeddings (None), other ones [B, T, D], or what a function makes of the clean
# ones, which it gets detached.
Input = Tensor | Callable[[Tensor], Tensor] | None

# A power of two, so that it shifts exponents only: the attack's loss is summed, not averaged, and scaled by this where
# half precision's small exponent range would flush its gradient to zero. Only the gradient's direction is used.
_FP16_ATTACK_SCALE = 2.0**6


def _refuse_moved_places(model: Any) -> None:
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False) and adapter.peft_type != "PREFIX_TUNING":
        raise InputError(
            f"PEFT's {adapter.peft_type.value} puts tokens before every sample: no answer is where its batch has it; "
            "use LoRA"
        )
    tables = {name: module for name, module in model.named_modules() if name.endswith("position_embeddings")}
    if moved := [name for name, table in tables.items() if getattr(table, "padding_idx", None) is not None]:
        raise InputError(f"{moved[0]} counts positions from behind its padding token's, and here they begin at 0")


class PerturbableLM:
    """Wraps a transformers causal LM (PEFT's wrapper included); call `remove()` to take the hooks off again.

    Build it before `deepspeed.initialize` and give it the engine with `run_under`. Raises InputError for a model in
    which a token is not at the place that its batch says.
    """

    def __init__(self, model: nn.Module) -> None:
        _refuse_moved_places(model)
        self.module = model
        self.engine: Any = None
        self.checkpoint_attack = True  # False: an attack pass keeps its activations where a training pass recomputes
        self.head = AnswerHead(model)
        self.dropout = DropoutSwitch(model)
        self._replacement: Callable[[Tensor], Tensor] | None = None  # what the first block sees of the embeddings
        self._reaches_first_block = False
        self._segments: SegmentAttention | None = None
        self._hook = self._hook_embeddings()

    def _hook_embeddings(self) -> RemovableHandle:
        embedding = self.module.get_input_embeddings()  # type: ignore[operator]
        handle: RemovableHandle = embedding.register_forward_hook(self._replace_embeddings)
        return handle

    def run_under(self, engine: Any) -> None:
        """Send training passes through a DeepSpeed engine made from this model."""
        self.engine, self.module = engine, engine.module
        # An attack's backward reaches the modules of the first block, which a training pass with a frozen table leaves
        # out. ZeRO-3 fetches ahead by the order of the modules it has seen, and starts to learn anew where it changes.
        self._reaches_first_block = bool(engine.zero_optimization_partition_weights())
        # Behind ZeRO-3's own hooks from here on: if they saw an output that needs a gradient, which the frozen table's
        # never does and an attacked one may, they would gather the whole table in the backward pass.
        self._hook.remove()
        self._hook = self._hook_embeddings()

    def remove(self) -> None:
        """Take the hook, the answer head and the attention by sample off the model."""
        self._hook.remove()
        self.head.remove()
        self.use_own_masks()

    def _replace_embeddings(self, module: nn.Module, args: Any, e: Tensor) -> Tensor:
        seen = e if self._replacement is None else self._replacement(e)
        if self._reaches_first_block and torch.is_grad_enabled() and not seen.requires_grad:
            seen = seen.detach().requires_grad_(True)
        return seen

    def prepare(self, batch: Batch) -> Batch:
        """The batch as this class runs it, made where its sizes are still on the CPU; calling it is optional."""
        return batch

    def input_gradient(
        self, batch: Batch, start: Callable[[Tensor], Tensor] = lambda e: e.clone()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One attack pass: the gradient of the summed answer loss with respect to the perturbed embeddings.

        `start` maps the embeddings e [B, T, D] to the point x [B, T, D] where the gradient is taken (default: e).
        Returns (e, x, g), each [B, T, D] in the model's dtype, detached. Summed loss: a sample's g does not depend on
        its neighbours. In float16 g is scaled by `attack_scale`. LoRA dropout is off; parameter gradients stay
        untouched. Method: eq. 6, docs/method.md section 4.
        """
        point, logits_at = AttackPoint(start), self._attack_pass(batch)
        try:
            with self.dropout.off(), self.head.not_learning(), self._attack_checkpointing():
                (losses,) = answer_losses(logits_at(point), [batch])
                (g,) = torch.autograd.grad(losses.sum() * self.attack_scale(point.x), point.x)
        finally:
            self._replacement = None
        return point.e, point.x.detach(), g

    def _attack_pass(self, batch: Batch) -> Callable[[AttackPoint], Tensor]:
        """What gives the logits at an attacked input; whatever is not part of the attack itself is done here."""
        return lambda point: self._forward(self.module, [(batch, point)])

    def _attack_checkpointing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.checkpoint_attack else without_checkpointing(self.module)

    @staticmethod
    def attack_scale(x: Tensor) -> float:
        """What `input_gradient` multiplies the attack's loss by: a power of two in float16, 1 elsewhere."""
        device = x.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _FP16_ATTACK_SCALE if computed is torch.float16 else 1.0

    def losses(self, batch: Batch, inputs: Sequence[Input] = (None,)) -> list[Tensor]:
        """A training pass over len(inputs) copies of the batch in ONE forward; each [S]: a sample's summed answer loss.

        An entry of `inputs` is None for the clean embeddings e [B, T, D], or x [B, T, D], which replaces them, or a
        function that makes x of e.
        """
        return self.losses_of([(batch, given) for given in inputs])

    def losses_of(self, parts: Sequence[tuple[Batch, Input]]) -> list[Tensor]:
        """`losses` of several batches in ONE forward, all padded or all packed; one tensor [S] for each part.

        The replacements stay in place until `backward`, because activation checkpointing may run the forward again.
        """
        return answer_losses(self._training_pass(parts), [batch for batch, _ in parts])

    def logits(self, batch: Batch, inputs: Sequence[Input]) -> list[Tensor]:
        """As `losses`, but each part is its float32 logits [A, V] at the batch's answer positions."""
        return list(self._training_pass([(batch, given) for given in inputs]).tensor_split(len(inputs)))

    def _training_pass(self, parts: Sequence[tuple[Batch, Input]]) -> Tensor:
        """The logits of all parts, one after the other."""
        with self._plain_again_if_it_fails():
            logits = self._forward(self._trained_through(), parts)
        if not torch.is_grad_enabled():  # a look: no backward will take the replacements away
            self._end_pass()
        return logits

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Backpropagate a scalar made from `losses` or `logits`; `last=False` where this micro-batch has another
        backward to come."""
        with self._plain_again_if_it_fails():
            self._backpropagate(loss, last)
        self._replacement = None

    def _end_pass(self) -> None:
        """Nothing of the pass is left: a forward of the model is a plain one again."""
        self._replacement = None

    @contextmanager
    def _plain_again_if_it_fails(self) -> Iterator[None]:
        """Whoever catches the error, such as one of memory, may go on with the model."""
        try:
            yield
        except BaseException:
            self._end_pass()
            raise

    def trained_input_gradient(
        self, batch: Batch, start: Callable[[Tensor], Tensor] = lambda e: e.clone(), *, weight: float = 1.0, last: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A training pass, backpropagated, that gives the input's gradient as well.

        `start` as in `input_gradient`. What is backpropagated is weight * (sum of the answer losses) / batch.mean_over;
        `last` as in `backward`. Returns (e [B, T, D], g [B, T, D], each sample's summed loss [S], a scalar that g is
        multiplied by). What weight, mean_over, accumulation and float16's loss scale make of the summed loss's g is
        taken back to within a power of two: that changes no bit of its direction, and a clamp of ||g|| means the same
        in a batch of any size.
        """
        point = AttackPoint(start)
        scale: list[Tensor] = []
        (losses,) = self.losses(batch, (point,))
        total = losses.sum()
        total.register_hook(scale.append)
        self.backward(weight * total / batch.mean_over, last=last)
        assert point.x.grad is not None
        back = torch.ldexp(torch.ones_like(scale[0]), -torch.frexp(scale[0]).exponent) * self.attack_scale(point.x)
        return point.e, point.x.grad * back, losses, scale[0] * back

    def _trained_through(self) -> Any:
        """What a training pass calls."""
        return self.engine or self.module

    def _backpropagate(self, loss: Tensor, last: bool) -> None:
        if self.engine is None:
            loss.backward()
            return
        boundary = self.engine.micro_steps % self.engine.gradient_accumulation_steps()
        is_boundary = boundary == self.engine.gradient_accumulation_steps() - 1
        self.engine.set_gradient_accumulation_boundary(last and is_boundary)
        self.engine.backward(loss)

    def _forward(self, module: Any, parts: Sequence[tuple[Batch, Input]]) -> Tensor:
        batches, given = [batch for batch, _ in parts], [x for _, x in parts]

        def replace_parts(e: Tensor) -> Tensor:
            seen = [as_seen(clean, x) for clean, x in zip(split_tokens(e, batches), given, strict=True)]
            return join_tokens(seen, batches) if len(seen) > 1 else seen[0]

        self._replacement = None if all(x is None for x in given) else replace_parts
        batch = join(batches)
        with self.head.only_at(batch.target_tensor_rows, batch.target_positions):
            logits: Tensor = module(**self._arguments(batch)).logits  # [A, V] float32
        return logits

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """What the model is called with."""
        called: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.lengths is not None:
            return called | {"position_ids": batch.position_ids()} | self.take_packed_batches().of_samples(batch)
        if batch.right_padded and self._causal:
            # No token looks at the padding behind it, and positions count from 0 as they are. Given a mask,
            # transformers would wait for the device to look at it, and SDPA would lose its flash kernel.
            return called | (self._segments.of_causal_rows(batch) or {} if self._segments else {})
        return called | {"position_ids": batch.position_ids(), "attention_mask": batch.attended.long()}

    @property
    def _causal(self) -> bool:
        return not getattr(getattr(self.module, "config", None), "use_bidirectional_attention", False)

    def take_packed_batches(self) -> SegmentAttention:
        """Install packed attention now, not at the first packed batch. Raises InputError where samples would see
        each other."""
        if self._segments is None:
            self._segments = SegmentAttention(self.module)
        return self._segments

    def spare_masks(self) -> None:
        """Give padded batches no mask to look at where the model's attention allows it: one wait less per pass."""
        with suppress(InputError):  # a model that mixes tokens in other ways keeps its masks
            self.take_packed_batches()

    def use_own_masks(self) -> None:
        """Let the model make the masks of padded batches after all."""
        if self._segments is not None:
            self._segments.remove()
            self._segments = None


def as_seen(clean: Tensor, given: Input) -> Tensor:
    """What the first block sees in place of the embeddings `clean` [B, T, D]."""
    if given is None:
        return clean
    seen = given(clean.detach()) if callable(given) else given
    # Trained embeddings: exactly `seen` in value, and their gradient still flows.
    return seen + (clean - clean.detach()) if clean.requires_grad else seen


class AttackPoint:
    """A part's input that is attacked: called with e, it makes x = start(e) a leaf of the graph, and keeps both."""

    e: Tensor  # [B, T, D] the clean embeddings, detached
    x: Tensor  # [B, T, D] the leaf, whose gradient is the attack's

    def __init__(self, start: Callable[[Tensor], Tensor]) -> None:
        self._start = start

    def __call__(self, e: Tensor) -> Tensor:
        self.e, self.x = e, self._start(e).requires_grad_(True)
        return self.x


def embedding_scale(model: nn.Module, unit: Literal["relative", "element"] = "relative") -> float:
    """What `eps_unit` multiplies eps and alpha by, from what the embedding module returns for the whole vocabulary.

    `relative`: the mean L2 norm of a row. `element`: the root mean square of an element. Counted on the module's
    OUTPUT, so Gemma's scaling is in it. Call it while the table is whole.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    weight = embedding.weight
    power = 1 if unit == "relative" else 2
    total, width = 0.0, 1
    with torch.no_grad():
        for ids in torch.arange(weight.shape[0], device=weight.device).split(8192):  # a large table is not copied whole
            e = embedding(ids[None]).float()
            total, width = total + e.norm(dim=-1).pow(power).sum().item(), e.shape[-1]
    mean = total / weight.shape[0]
    return mean if unit == "relative" else (mean / width) ** 0.5
