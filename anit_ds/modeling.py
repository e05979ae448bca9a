"""Loading: a causal LM, its tokenizer, and a LoRA adapter on it, new or from an earlier run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import peft
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import nn

from anit_ds.config import Config, LoraConfig, ModelConfig
from anit_ds.errors import InputError, first_line, nearest, shown
from anit_ds.files import checkpoint_hash, read_json
from anit_ds.sealed import read_sealed_folder

# The names the YAML has for peft.LoraConfig's fields; all other fields keep their own.
_LORA_NAMES = {"alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}
# Ways to begin that take the adapter's first value out of the base's own weights. An adapter's folder has no base, and
# whoever loads it would compute, or draw, another rest.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def dtype_name(dtype: torch.dtype) -> str:
    """As `model.dtype` has it: float32, bfloat16, float16."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype of `model.dtype`; `auto` is bfloat16 where the hardware computes it natively, else float32.

    Raises InputError for float16 on a CPU, which DeepSpeed refuses.
    """
    if name == "auto":
        if device == "cpu":
            native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        else:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if name == "float16" and device == "cpu":
        raise InputError("model.dtype: float16 does not train on a CPU; use bfloat16 or float32")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_tokenizer(config: ModelConfig) -> Any:
    """The fast tokenizer of `model.name_or_path`. Raises InputError when there is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            config.name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise not_there(config, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels go by length, so a shared id is harmless
    return tokenizer


def stops_in(settings: Any, tokenizer: Any) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS, which training writes, and those of a checkpoint's generation
    settings, which may be None."""
    own = getattr(settings, "eos_token_id", None)
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *own})


def chat_template(config: ModelConfig) -> tuple[str, str, int] | None:
    """What the model's chat template puts before and behind a prompt, and how many tokens that is; None where its
    tokenizer is not on this machine, or has no template that takes one (training says why)."""
    mark = "ANIT"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            config.name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code,
            local_files_only=True,
        )  # fmt: skip
        asked = [{"role": "user", "content": mark}]
        text = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template is a program: it may end in any way
        return None
    before, _, behind = text.partition(mark)
    tokens = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, behind))
    return before, behind, tokens


def base_fingerprint(config: ModelConfig) -> str | None:
    """The `checkpoint_hash` of the base model. None where its files are not on this machine."""
    folder = Path(config.name_or_path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(config.name_or_path, "config.json", revision=config.revision)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    return checkpoint_hash(folder)


def load_model(config: ModelConfig, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """The causal LM with frozen weights in `dtype`, on the CPU or straight on a GPU. Raises InputError when it is not
    there.

    On the way to a GPU a checkpoint in another dtype is converted tensor by tensor: eight ranks that each convert
    Llama-2-7B's float16 into bfloat16 on the host hold 108 GB there.
    """
    straight: dict[str, Any] = {"device_map": {"": device}} if device is not None and device.type != "cpu" else {}
    if config.load_in_4bit:
        straight = {"device_map": {"": device or "cpu"}, "quantization_config": _in_4bit(config, dtype)}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            config.name_or_path,
            dtype=dtype,
            attn_implementation=config.attn,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            **straight,
        )
    except (OSError, ValueError, ImportError) as error:
        raise not_there(config, error) from error
    layers: Iterable[Any] = model.modules()
    for module in layers:
        # On some CPUs an evaluation would pack the weights anew, into a form that gradients do not go through.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def _in_4bit(config: ModelConfig, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """Raises InputError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise InputError("model.load_in_4bit: needs bitsandbytes; pip install 'anit-ds[quant]'")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
    )


def not_there(config: ModelConfig, error: Exception) -> InputError:
    """What a model that transformers cannot load is called in a sentence."""
    name = Path(config.name_or_path)
    if name.is_absolute() and not name.is_dir():
        return InputError(f"model.name_or_path: there is no folder {name}; give a hub id or a checkpoint's folder")
    return InputError(
        f"model.name_or_path: {config.name_or_path!r} cannot be loaded as a causal LM ({first_line(error)}); "
        "give a hub id or a folder with config.json, weights and tokenizer"
    )


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    """peft's own configuration. Raises InputError for a field it does not have or a value it refuses."""
    given = {_LORA_NAMES.get(k, k): v for k, v in config.model_dump(exclude={"init_from"}).items()}
    fields = {f.name for f in dataclasses.fields(peft.LoraConfig)}
    types = get_type_hints(peft.LoraConfig)
    for name, value in given.items():
        if name not in fields:
            known = nearest(name, sorted({*fields, *LoraConfig.model_fields}))
            raise InputError(f"lora.{name}: peft {peft.__version__} has no such field; {known}")
        # Our own fields are checked, and peft's annotation of this one leaves out half of what it takes.
        if name in (*_LORA_NAMES.values(), "r", "init_lora_weights"):
            continue
        try:
            _adapter_of_type(types[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(f"lora.{name}: {reason[:1].lower()}{reason[1:]}, not {shown(value)}") from error
    begin = given.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(_CHANGE_THE_BASE):
        raise InputError(
            f"lora.init_lora_weights: {shown(begin)} changes the base model, which no adapter brings back where it is "
            "loaded; use true, gaussian, orthogonal or eva"
        )
    try:
        return peft.LoraConfig(**{"task_type": "CAUSAL_LM", **given})
    except (TypeError, ValueError, LookupError, AttributeError, ImportError) as error:
        raise InputError(f"lora: {error}") from error


def _adapter_of_type(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a dataclass has settings of its own
        return TypeAdapter(kind)


def make_trainable(model: nn.Module, config: Config) -> nn.Module:
    """A PEFT model with the run's LoRA, or with the adapter of `lora.init_from` to go on from; with `lora: null` the
    model itself, all of whose weights are trained.

    Adapter weights are made from `train.seed`, in the model's dtype (DeepSpeed keeps float32 masters of them).
    Raises InputError: no module has a name in `lora.targets`, no adapter at `lora.init_from`.
    """
    if config.lora is None:
        return model.requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        if config.lora.init_from:
            return load_adapter(model, config.lora.init_from, trainable=True)
        try:
            adapted = peft.get_peft_model(model, peft_config(config.lora), autocast_adapter_dtype=False)
        except ValueError as error:
            raise InputError(f"lora.targets: {error}") from error
        # A pattern or a list that holds something odd, or a field that needs a package more.
        except (TypeError, LookupError, AttributeError, ImportError, re.error) as error:
            raise InputError(f"lora: peft does not take it ({type(error).__name__}: {error})") from error
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise InputError("lora: it leaves nothing to train (inference_mode)")
    _refuse_a_tied_table(adapted)
    return adapted


def _refuse_a_tied_table(adapted: Any) -> None:
    """Raises InputError where an adapter is on the embeddings or the head and both are one weight: merged it would
    change both, and only one of them was trained."""
    base = adapted.get_base_model()
    if not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return
    for module, name in ((base.get_output_embeddings(), "head"), (base.get_input_embeddings(), "embeddings")):
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise InputError(
                f"lora: it adapts the {name}, but head and embeddings are one weight in this model, and an adapter of "
                "one of them cannot be merged; take it out of lora.targets and lora.modules_to_save"
            )


def check_tables(model: Any, pad_id: int, ids: Iterable[int], max_length: int) -> None:
    """Raises InputError where a token or a position would lie beyond the model's tables."""
    tokens = model.get_input_embeddings()
    rows = tokens.num_embeddings
    if (largest := max(pad_id, max(ids, default=0))) >= rows:
        what = "the tokenizer's pad token" if largest == pad_id else "a token of the data"
        raise InputError(
            f"model.name_or_path: {what} has the id {largest}, but the model's table has {rows} rows; save the model "
            "again after model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that it was trained with"
        )
    # Learned positions are a table too; rotary ones go on beyond what the model was trained with.
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    learned = any(
        isinstance(module, nn.Embedding) and module is not tokens and module.num_embeddings >= (positions or 0) > 0
        for module in model.modules()
    )
    if learned and positions and max_length > positions:
        raise InputError(f"data.max_length: {max_length} is more than the {positions} positions that this model has")


def with_fields_of_init_from(config: Config) -> Config:
    """`config` with the fields of the adapter that `lora.init_from` goes on from, which stay what they are.

    Raises InputError: no adapter there, a field of `lora` that was given another value.
    """
    if config.lora is None or not config.lora.init_from:
        return config
    file = adapter_folder(config.lora.init_from) / "adapter_config.json"
    try:
        adapter = dict(read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not the JSON object that peft writes ({shown(str(error))})") from error
    given = config.lora.model_dump(include=config.lora.model_fields_set - {"init_from"})
    for field, value in given.items():
        theirs = adapter.get(_LORA_NAMES.get(field, field))
        same = value == theirs
        if field == "targets":  # a pattern is kept as the names that it found
            same = isinstance(value, str) or (isinstance(theirs, list) and set(value) == set(theirs))
        if not same:
            raise InputError(
                f"lora.{field} is {shown(value)}, but {shown(theirs)} in the adapter that lora.init_from goes on from, "
                f"where it stays; leave lora.{field} out"
            )
    kept = {name: adapter.get(_LORA_NAMES.get(name, name)) for name in ("r", *_LORA_NAMES) if name not in given}
    fields = {name: value for name, value in kept.items() if value is not None}
    if isinstance(fields.get("targets"), list):
        fields["targets"] = sorted(fields["targets"])
    return config.model_copy(update={"lora": config.lora.model_copy(update=fields)})


WEIGHTS_SEAL = "checksums.json"
"""Beside weights that a run wrote: the SHA-256 of their files, and of which configuration and step they are."""


def adapter_folder(run_or_adapter: str | Path) -> Path:
    """The adapter in a run's folder (its adapter/) or in an adapter's own.

    Raises InputError: no adapter there, or one whose files are not what was written.
    """
    folder = Path(run_or_adapter)
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    weights_about(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter here (adapter_config.json is missing)")
    return folder


def weights_about(folder: Path) -> dict[str, Any]:
    """What a run said about an adapter or a model that it wrote; empty for any other. Raises Damaged where its files
    are not what was written."""
    return read_sealed_folder(folder, WEIGHTS_SEAL) if (folder / WEIGHTS_SEAL).is_file() else {}


def load_trained(config: Config, folder: Path, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """The model that a run has trained, from the folder of its best weights: the base with the adapter there, or the
    whole model there. Raises InputError: no such weights, damaged ones, no base."""
    if config.lora is not None:
        return load_adapter(load_model(config.model, dtype, device), folder)
    weights_about(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model here (config.json is missing)")
    return load_model(config.model.model_copy(update={"name_or_path": str(folder), "revision": None}), dtype, device)


def load_adapter(model: nn.Module, run_or_adapter: str | Path, *, trainable: bool = False) -> nn.Module:
    """`model` with the adapter in a run folder or in an adapter folder. Raises InputError as `adapter_folder`, and for
    one that peft cannot read."""
    folder = adapter_folder(run_or_adapter)
    try:
        return peft.PeftModel.from_pretrained(
            model, str(folder), is_trainable=trainable, autocast_adapter_dtype=False
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: peft cannot put this adapter on the model ({shown(first_line(error))})") from error


def use_activation_checkpointing(model: Any) -> None:
    """Non-reentrant: the reentrant kind refuses the attack's `autograd.grad`."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def adapter_off(model: Any) -> AbstractContextManager[Any]:
    """The untouched base model, inside a `with`."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
