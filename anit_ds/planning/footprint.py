"""The memory and the operations of one micro-batch, counted by running the real code on fake tensors.

Fake tensors have a shape, a dtype and a lifetime, and no values: the model is built from its configuration alone. Every
tensor that an operation makes is counted from its birth to its death, so what autograd keeps, what the attack passes
free and what the backward passes hold for a moment are all in the peak. What a kernel takes for itself inside one
operation is not. Which weights an operation reads says in what order ZeRO 3 has to gather them. Two and four decoder
layers are run, and the rest follows: memory on a straight line, the order by more layers like the middle ones.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from anit_ds.adversarial import Batch
from anit_ds.adversarial.assembly import attach_method, perturbable
from anit_ds.config import Config, ModelConfig
from anit_ds.errors import InputError
from anit_ds.modeling import make_trainable, not_there, use_activation_checkpointing
from anit_kernels import shapes_only

T = TypeVar("T")
_FEW, _MANY = 2, 4  # decoder layers


# A unit of weights, which a pass uses together: a decoder layer by its number, or one of these.
Unit = int | str
EMBEDDINGS, LAYER, REST = "embeddings", "layer", "rest"
_IN_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Numbers of weights of a model as it is trained; `units` has those of each parameter of a unit (LAYER: of one)."""

    frozen: int
    trained: int
    units: Mapping[str, tuple[int, ...]]
    quantised: int = 0  # of the frozen ones, those held in 4 bits
    largest_quantised: int = 0  # of one layer, which is computed with in full

    @property
    def all(self) -> int:
        return self.frozen + self.trained

    def of(self, unit: Unit, *, above: int = 0) -> int:
        """Weights of a unit in parameters of more than `above`."""
        return sum(count for count in self.units[LAYER if isinstance(unit, int) else unit] if count > above)


@dataclasses.dataclass(frozen=True)
class Visit:
    """A pass at a unit of weights: floating-point operations there. `attack`: in a pass that trains nothing."""

    unit: Unit
    backward: bool
    attack: bool
    operations: int


@dataclasses.dataclass(frozen=True)
class Footprint:
    """A micro-batch of a method. Bytes are above weights, gradients and optimizer.

    peaks: pass -> its peak; `attack` passes come before the `training` ones. first: the units in the order that a
    step's first micro-batch visits them. last: those of the last one, where a micro-batch takes part in the one before.
    again: those of a micro-batch in each later of the `replays` steps in a row on one minibatch, and carried: the bytes
    that each micro-batch keeps from one of them to the next.
    """

    peaks: dict[str, int]
    first: tuple[Visit, ...]
    last: tuple[Visit, ...]
    weights: Weights
    replays: int = 1
    again: tuple[Visit, ...] = ()
    carried: int = 0

    def peak(self, micro_batches: int) -> int:
        """Of a step, in which every other micro-batch's carried tensors wait for their turn."""
        return max(self.peaks.values()) + self.carried * (micro_batches - 1)

    def steps(self, micro_batches: int) -> tuple[tuple[Visit, ...], ...]:
        """The visits of each optimizer step on a minibatch."""
        if not self.last or micro_batches == 1:
            return (self.first * micro_batches, *[self.again * micro_batches] * (self.replays - 1))
        between = tuple(visit for visit in self.first if not visit.attack)
        return (self.first + between * (micro_batches - 2) + self.last,)


def footprint(config: Config, batch: Batch, dtype: torch.dtype, *, ahead: bool = False) -> Footprint:
    """The footprint of a micro-batch, which is on the CPU as the trainer makes it, under the configured method.

    ahead: whether a step has more micro-batches, the next of which `schedule: pipelined` attacks in this one's pass.
    Raises InputError: no such model, a method that this model cannot be trained with, code that looks at values.
    """
    settings = model_settings(config.model)
    layers = settings.num_hidden_layers
    ahead = ahead and config.method.schedule == "pipelined"
    if layers <= _MANY:
        return _FakeRun(config, settings, dtype).of(batch, ahead=ahead)
    few, many = (_FakeRun(config, _shortened(settings, n), dtype).of(batch, ahead=ahead) for n in (_FEW, _MANY))

    def at_full_depth(low: int, high: int) -> int:
        return round(low + (high - low) * (layers - _FEW) / (_MANY - _FEW))

    return Footprint(
        peaks={name: at_full_depth(few.peaks[name], many.peaks[name]) for name in many.peaks},
        first=tuple(_at_depth(many.first, layers)),
        last=tuple(_at_depth(many.last, layers)),
        replays=many.replays,
        again=tuple(_at_depth(many.again, layers)),
        carried=many.carried,
        weights=dataclasses.replace(
            many.weights,
            frozen=at_full_depth(few.weights.frozen, many.weights.frozen),
            trained=at_full_depth(few.weights.trained, many.weights.trained),
            quantised=at_full_depth(few.weights.quantised, many.weights.quantised),
        ),
    )


def _at_depth(visits: tuple[Visit, ...], layers: int) -> Iterator[Visit]:
    """The visits of a model of so many layers: each sweep over all of _MANY gets more of those between the outer two.

    Two of them in turn: layers of some models alternate.
    """
    at = 0
    while at < len(visits):
        sweep = visits[at : at + _MANY]
        upwards = [visit.unit for visit in sweep] == list(range(_MANY))
        if not upwards and [visit.unit for visit in sweep] != list(reversed(range(_MANY))):
            yield visits[at]
            at += 1
            continue
        inner = itertools.cycle(sweep[1:3])
        whole = [sweep[0], *itertools.islice(inner, layers - 2), sweep[-1]]
        for place, visit in enumerate(whole):
            yield dataclasses.replace(visit, unit=place if upwards else layers - 1 - place)
        at += _MANY


# What torch says of an operator that has no result without values.
_NEEDS_VALUES = (
    DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)  # fmt: skip


class _FakeRun:
    """A configuration's model and method on fake tensors; `of` counts a micro-batch."""

    def __init__(self, config: Config, settings: Any, dtype: torch.dtype) -> None:
        self.config, self._mode = config, FakeTensorMode()
        model = _fake_model(config, settings, dtype, self._mode)
        self.weights = _count(model, in_4bit=config.model.load_in_4bit)
        if config.train.activation_checkpointing:
            use_activation_checkpointing(model)
        self._lm = perturbable(model, config)
        warm = config.method.model_copy(update={"warmup": 0.0})  # a step of the method, not one before it begins
        self._method = attach_method(self._lm, config.model_copy(update={"method": warm}), scale=1.0, total_steps=1)
        model.train()

    def of(self, batch: Batch, *, ahead: bool) -> Footprint:
        ledger = _Ledger(self._lm.module)
        self._lm.input_gradient = ledger.as_attack(type(self._lm).input_gradient.__get__(self._lm))  # type: ignore[method-assign]
        first, upcoming = (_faked(self._lm.prepare(batch), self._mode) for _ in range(2))
        replays = self._method.replays
        order: list[tuple[Batch, Batch | None]] = [(first, None)]
        if ahead:
            order = [(first, upcoming), (upcoming, None)]
        elif replays > 1:  # the later ones are alike
            order.append((dataclasses.replace(first, step=1), None))
        counted: list[tuple[Visit, ...]] = []
        try:
            with ExitStack() as inside:
                for context in (shapes_only(), torch.random.fork_rng(devices=[]), self._mode, ledger):
                    inside.enter_context(context)
                for parameter in self._lm.module.parameters():
                    if parameter.requires_grad:
                        inside.callback(parameter.register_post_accumulate_grad_hook(ledger.leave_out_gradient).remove)
                before = ledger.alive
                carried = 0
                for now, after in order:
                    self._method.foresee(after)
                    self._method.backward(self._lm, now)
                    counted.append(ledger.take_visits())
                    if replays > 1 and now is first:
                        self._forget_gradients()
                        carried = ledger.alive - before
        except _NEEDS_VALUES as error:
            raise InputError(
                f"model.name_or_path: {self.config.model.name_or_path!r} computes what depends on the values of a "
                f"tensor ({error}); a step of it cannot be counted without them"
            ) from error
        self._forget_gradients()
        first_visits, *others = counted
        return Footprint(
            dict(ledger.peaks),
            first=first_visits,
            last=others[0] if ahead else (),
            weights=self.weights,
            replays=replays,
            again=others[0] if replays > 1 else (),
            carried=carried,
        )

    def _forget_gradients(self) -> None:
        """As an optimizer step does."""
        for parameter in self._lm.module.parameters():
            parameter.grad = None


class _Ledger(TorchDispatchMode):
    """Of what is dispatched inside: bytes that are alive, their peak in each pass, and the weights that are visited.

    The model's own tensors were there before, and views of them are nothing new. A parameter's gradient is left out
    from the moment it is one: how much of it a rank keeps, and how long, is ZeRO's affair.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peaks: dict[str, int] = defaultdict(int)
        self.alive, self._pass = 0, "training"
        self._units = {p.untyped_storage()._cdata: unit for unit, p in _by_unit(model)}
        self._storages = {*self._units, *(b.untyped_storage()._cdata for b in model.buffers())}
        self._sizes: dict[int, int] = {}  # of the storages that count
        self._visits: list[Visit] = []

    def leave_out_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.alive -= self._sizes.pop(parameter.grad.untyped_storage()._cdata, 0)

    def as_attack(self, call: Callable[..., T]) -> Callable[..., T]:
        """`call`, whose operations count as those of an attack's pass."""

        def inside(*args: Any, **kwargs: Any) -> T:
            self._pass, before = "attack", self._pass
            try:
                return call(*args, **kwargs)
            finally:
                self._pass = before

        return inside

    def take_visits(self) -> tuple[Visit, ...]:
        """Those since the last call."""
        taken, self._visits = tuple(self._visits), []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        self._visit(tree_leaves(args), _operations(func, args, kwargs or {}, out))
        return out

    def _visit(self, operands: list[Any], operations: int) -> None:
        keys = (t.untyped_storage()._cdata for t in operands if isinstance(t, Tensor))
        unit = next((self._units[key] for key in keys if key in self._units), None)
        last = self._visits[-1] if self._visits else None
        backward, attack = torch._C._current_graph_task_id() != -1, self._pass == "attack"
        if unit is not None and (last is None or (last.unit, last.backward, last.attack) != (unit, backward, attack)):
            self._visits.append(Visit(unit, backward, attack, operations))
        elif last is not None and operations:
            self._visits[-1] = dataclasses.replace(last, operations=last.operations + operations)

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self._sizes[key] = size
        self.alive += size
        self.peaks[self._pass] = max(self.peaks[self._pass], self.alive)
        weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self._storages.discard(key)
        self.alive -= self._sizes.pop(key, 0)


def _by_unit(model: nn.Module) -> Iterator[tuple[Unit, nn.Parameter]]:
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        layer = _IN_LAYER.search(name)
        yield (int(layer[1]) if layer else EMBEDDINGS if parameter is table else REST), parameter


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    # PyTorch's counter knows the attention of GPUs; a CPU's takes the same operands.
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(2.5 * sdpa_flop_count(*(t.shape for t in args[1:4])))  # five products where forward has two
    return 0


def model_settings(source: ModelConfig) -> Any:
    """transformers' configuration of the model, without its weights. Raises InputError: there is none."""
    try:
        return transformers.AutoConfig.from_pretrained(
            source.name_or_path, revision=source.revision, trust_remote_code=source.trust_remote_code
        ).get_text_config()
    except (OSError, ValueError) as error:
        raise not_there(source, error) from error


def _shortened(settings: Any, layers: int) -> Any:
    short = copy.deepcopy(settings)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    return short


def _fake_model(config: Config, settings: Any, dtype: torch.dtype, mode: FakeTensorMode) -> nn.Module:
    """The PEFT model of a configuration, its weights fake."""
    source = config.model
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                settings, dtype=dtype, attn_implementation=source.attn, trust_remote_code=source.trust_remote_code
            ).requires_grad_(False)
            adapted = make_trainable(model, config)
    except (ValueError, ImportError) as error:
        raise not_there(source, error) from error
    made: dict[int, Tensor] = {}  # a table that is tied is one

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                # A buffer, such as the rotary frequencies, keeps its dtype; adapters on meta forgot the model's.
                kind = dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
                empty = torch.empty(tensor.shape, dtype=kind)
                made[id(tensor)] = (
                    nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                )
        return made[id(tensor)]

    for module in adapted.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for store in stores:
            store.update({name: fake(tensor) for name, tensor in store.items() if tensor is not None})
    return adapted


def _count(model: Any, *, in_4bit: bool) -> Weights:
    units: dict[str, tuple[int, ...]] = {EMBEDDINGS: (), LAYER: (), REST: ()}
    for unit, parameter in _by_unit(model):
        if unit == 0 or isinstance(unit, str):  # layers are alike
            name = unit if isinstance(unit, str) else LAYER
            units[name] += (parameter.numel(),)
    parameters, head = list(model.parameters()), model.get_output_embeddings()
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    quantised = [weight.numel() for weight in linears if in_4bit and not weight.requires_grad]
    return Weights(
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        units=units,
        quantised=sum(quantised),
        largest_quantised=max(quantised, default=0),
    )


def _faked(of: T, mode: FakeTensorMode) -> T:
    """A batch whose tensors, those of its parts included, hold nothing."""
    if isinstance(of, Tensor):
        return mode.from_tensor(of)  # type: ignore[return-value]
    if dataclasses.is_dataclass(of) and not isinstance(of, type):
        return dataclasses.replace(of, **{f.name: _faked(getattr(of, f.name), mode) for f in dataclasses.fields(of)})
    return of
