"""`CachedLM`: a causal LM that reads each token of its prompts once, the prefixes that prompts share too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from anit_ds.adversarial.causal import base_of, beyond_causal
from anit_ds.adversarial.head import AnswerHead
from anit_ds.errors import RunFailed
from anit_ds.evaluation.rows import GrowingLayer, Rows
from anit_ds.evaluation.trie import Trie
from anit_ds.ranks import distributed

# What a checkpoint's generation settings may say: it is no matter of greedy decoding, or done here.
_GENERATION_SETTINGS = {
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "decoder_start_token_id", "disable_compile", "do_sample", "early_stopping", "eos_token_id", "epsilon_cutoff",
    "eta_cutoff", "length_penalty", "low_memory", "max_cache_len", "max_length", "max_new_tokens", "min_p",
    "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "pad_token_id", "renormalize_logits", "repetition_penalty", "return_dict_in_generate", "temperature", "top_h",
    "top_k", "top_p", "transformers_version", "typical_p", "use_cache",
}  # fmt: skip
_NEUTRAL: tuple[Any, ...] = (None, False, 0, [])
# Attention that takes a mask of four dimensions as it is; training may have wrapped it (adversarial/segments.py).
_TAKES_ANY_MASK = ("sdpa", "eager")


def why_not_cached(model: nn.Module) -> str | None:
    """Why `CachedLM` cannot stand in for `model.generate`, as the end of a sentence about the model; None if it can."""
    base = base_of(model)
    if why := beyond_causal(base):
        return why
    if getattr(base.config.get_text_config(), "num_kv_shared_layers", 0):
        return "shares keys and values between layers"
    if base.get_output_embeddings() is None or _counts_positions(base):
        return "has no language-model head, or counts positions by itself"
    if _cache_argument(base) is None:
        return "takes no keys and values"
    settings = base.generation_config.to_diff_dict() if base.generation_config else {}
    more = [key for key, value in settings.items() if not (key in _GENERATION_SETTINGS or key[0] == "_")]
    if more := [key for key in more if settings[key] not in _NEUTRAL]:
        return f"sets {', '.join(more)} for its generation"
    return None


def _counts_positions(base: nn.Module) -> bool:
    """Whether it takes no positions, or has numbers of its own for them: RoBERTa's first is that after its padding."""
    own = any(hasattr(module, "create_position_ids_from_input_ids") for module in base.modules())
    return own or "position_ids" not in inspect.signature(base.forward).parameters


def _cache_argument(base: nn.Module) -> str | None:
    """What the model calls its cache: from transformers 5.24 on another name, and what it does not know by name it
    drops in silence."""
    return next(
        (name for name in ("cache", "past_key_values") if name in inspect.signature(base.forward).parameters), None
    )


class Pace:
    """Keeps ranks in step where weights are partitioned over them: then a pass of one is a pass of all."""

    def __init__(self, model: nn.Module) -> None:
        self.together = distributed.in_step(model)

    def before_a_pass(self) -> None:
        if self.together:
            distributed.any_rank(True)

    def until_all_are_done(self, take_part: Callable[[], object]) -> None:
        """Call `take_part` for each pass that another rank still makes."""
        while self.together and distributed.any_rank(False):
            take_part()


class CachedLM:
    """A model in evaluation mode, ready to go on from prefixes, of which the first is empty.

    Use it in a `with`: it takes the model's head and gives it back. All ranks go through the `with` together where
    weights are partitioned. `heartbeat` is called after every pass, those that a rank only takes part in too.
    """

    def __init__(
        self,
        model: nn.Module,
        prefixes: Sequence[list[int]],
        *,
        batch_size: int,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.model: Any = model
        self.device, self.dtype = next(model.parameters()).device, base_of(model).dtype
        self._cache_argument = str(_cache_argument(base_of(model)))
        self._texts, self.batch_size = prefixes[1:], batch_size
        self._pace, self._heartbeat = Pace(model), heartbeat

    def __enter__(self) -> CachedLM:
        self._head = AnswerHead(self.model)
        try:
            self._read_prefixes()
        except BaseException:
            self._head.remove()
            raise
        return self

    def _read_prefixes(self) -> None:
        self._prefixes = [Rows.empty(1)]
        for first in range(0, len(self._texts), self.batch_size):
            texts = self._texts[first : first + self.batch_size]
            rows = Rows.empty(len(texts))
            with self._head.off():
                self._run(rows, texts)
            rows = rows.grown([len(text) for text in texts])
            self._prefixes += [rows.chosen([number]) for number in range(len(texts))]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._pace.until_all_are_done(lambda: self._pass(Rows.empty(1), [[0]]))
        finally:
            self._head.remove()

    def start(self, which: Sequence[int]) -> Rows:
        """Rows that have read their prefix, given by its number."""
        first, *others = {number: None for number in which}
        if others:
            return Rows.joined([self._prefixes[number] for number in which])
        return self._prefixes[first].repeated(len(which))

    def takes_tries(self, longest: int) -> bool:
        """Whether several answers may stand in one row of up to `longest` tokens: the attention takes a mask as it is,
        and no layer's window is shorter."""
        config = base_of(self.model).config.get_text_config()
        window = getattr(config, "sliding_window", None)
        attention = str(config._attn_implementation).removesuffix("_by_segment")
        return attention in _TAKES_ANY_MASK and (window is None or longest <= window)

    def read(
        self, rows: Rows, tokens: Sequence[list[int]], tries: Sequence[Trie] = ()
    ) -> tuple[Rows, Tensor, list[list[float]]]:
        """The rows with one or more tokens each; the logits [B, V] of what follows, in the model's dtype; and with a
        trie of answers for each row their log-probabilities there, which leave no trace in the rows.

        Takes `rows` over. Answers run in the same pass; their logits are computed in float32 where the head is frozen.
        """
        lengths = [len(more) for more in tokens]
        if not tries:
            with self._head_at([length - 1 for length in lengths]) if max(lengths) > 1 else nullcontext():
                logits = self._run(rows, tokens)[:, -1]
            return rows.grown(lengths), logits, []
        sizes = [1 + len(trie) for trie in tries]
        places = [(row, length - 1 + at) for row, length in enumerate(lengths) for at in range(sizes[row])]
        row, place = torch.tensor(places, device=self.device).T
        with self._head.only_at(row, place):
            exact = self._run(rows, tokens, tries)  # [A, V]
        scores = [trie.scores(part) for trie, part in zip(tries, exact.split(sizes), strict=True)]
        told = [of.tolist() for of in torch.cat(scores).cpu().split([len(of) for of in scores])]
        first = torch.tensor(list(accumulate([0, *sizes][:-1])), device=self.device)
        return rows.grown(lengths), exact[first].to(self.dtype), told

    def _run(self, rows: Rows, tokens: Sequence[list[int]], tries: Sequence[Trie] = ()) -> Tensor:
        self._pace.before_a_pass()
        if not tries:
            return self._pass(rows, tokens)
        texts = [[*more, *trie.tokens] for more, trie in zip(tokens, tries, strict=True)]
        if all(trie.is_chain for trie in tries):
            return self._pass(rows, texts)
        return self._pass(rows, texts, _seen(tokens, tries))

    def _pass(self, rows: Rows, tokens: Sequence[list[int]], seen: Tensor | None = None) -> Tensor:
        """The model's logits for more tokens, padded behind the rows; their keys and values are in the cache then.

        seen [B, T, T] bool: which of the new tokens each sees, itself included, where that is not all before it.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([more + [0] * (width - len(more)) for more in tokens], device=self.device)
        lengths = torch.tensor([[len(more)] for more in tokens], device=self.device)
        new = torch.arange(width, device=self.device)
        before = torch.tensor(rows.lengths, device=self.device).unsqueeze(1)
        if seen is None:
            mask, position = torch.cat([rows.attended(self.device), new < lengths], dim=1).long(), new
        else:
            seen = seen.to(self.device)
            mask, position = self._as_it_is(rows.attended(self.device), seen), seen.sum(2) - 1
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=before + position,
            use_cache=True,
            **{self._cache_argument: rows.cache},
        )
        if not rows.layers or any(type(layer) is not GrowingLayer for layer in rows.layers):
            raise RunFailed("the model does not keep plain keys and values in every layer")
        self._heartbeat()
        logits: Tensor = output.logits
        return logits

    def _as_it_is(self, kept: Tensor, seen: Tensor) -> Tensor:
        """[B, 1, T, L + T], added to attention's scores: kept [B, L] columns and the new tokens of `seen` [B, T, T]."""
        both = torch.cat([kept.unsqueeze(1).expand(-1, seen.shape[1], -1), seen], dim=2)
        mask = torch.zeros(both.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~both, torch.finfo(self.dtype).min).unsqueeze(1)

    @contextmanager
    def _head_at(self, places: Sequence[int]) -> Iterator[None]:
        """Inside, logits [B, 1, V] at one place of each row.

        The copy matters: on a strided slice of a bfloat16 batch, as `logits_to_keep` makes one, a CPU's head takes
        longer than all layers together.
        """
        rows, columns = torch.arange(len(places), device=self.device), torch.tensor(places, device=self.device)

        def choose(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return arguments[0][rows, columns].unsqueeze(1), *arguments[1:]

        handle = self._head.module.register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()


def _seen(tokens: Sequence[list[int]], tries: Sequence[Trie]) -> Tensor:
    """[B, T, T] bool: of rows with more tokens and a trie behind them, which of these each sees; padding itself."""
    width = max(len(more) + len(trie) for more, trie in zip(tokens, tries, strict=True))
    seen = torch.eye(width, dtype=torch.bool).repeat(len(tokens), 1, 1)
    for row, more, trie in zip(seen, tokens, tries, strict=True):
        start, end = len(more), len(more) + len(trie)
        row[:start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
        row[start:end, :start] = True
        row[start:end, start:end] = trie.seen
    return seen
