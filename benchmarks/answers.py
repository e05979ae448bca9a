"""Answers per CPU second: `model.generate` on whole padded prompts, and the evaluation's own way with kept prefixes.

    python benchmarks/answers.py --data DATA --json results/answers/answers.json
    python benchmarks/answers.py --data DATA --datasets sst2 --instructions detailed --rounds 1

DATA holds a folder a data set, as `data.path` of a run names it. Questions are a dev split's, in the order and with the
answers' length that an evaluation gives them; the model has a LoRA that was trained for some steps of plain
fine-tuning, or none (`untouched`), which goes on to the longest answer allowed: the worst case. Before anything is
timed the gate: in float32 both ways must give the same answers, all of them, or the benchmark stops. The two ways take
turns; figures are medians of their rounds' CPU time (on a GPU, of the time until the device is done).

differ: answers of the timed precision that are not equal. In bfloat16 one in some hundred tokens is decided between
logits that rounding makes equal, and any other order of summation may decide it otherwise; so beside it stands how many
answers of each way differ from those in float32 (off_plain, off_kept). scored: the ratio where the evaluation also
scores the gold answers and, for classification, all labels. read_share: the share of time that reads prompts; the rest
decides one token after the other.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from measuring import Cost, show, spread, time_of, write_json
from modes import MODES, Foundation, Stepper, Workload, run_config
from torch import Tensor, nn

from anit_ds.config import Config
from anit_ds.data.rundata import RunData
from anit_ds.errors import InputError
from anit_ds.evaluation import Evaluator, plain
from anit_ds.evaluation.cached import CachedLM
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.prefix import shared_prefixes
from anit_ds.evaluation.questions import Question, texts_of
from anit_ds.evaluation.rows import Rows

DATASETS = ("sst2", "agnews", "14lap", "14res", "wnut17", "scierc", "webnlg")
COLUMNS = ("dataset", "instructions", "model", "prompt_tokens", "shared_tokens", "answer_tokens", "plain_per_second",
           "kept_per_second", "ratio", "scored", "differ", "off_plain", "off_kept", "read_share")  # fmt: skip
_TRAINED_ROWS, _RATE = 8, 1e-3


@dataclass(frozen=True)
class Asked:
    """A data set's dev split as an evaluation asks it, and a model with and without an adapter to ask."""

    config: Config
    evaluator: Evaluator
    questions: list[Question]
    scored: list[Question]
    max_new_tokens: int
    model: nn.Module

    @classmethod
    def read(cls, foundation: Foundation, dataset: str, folder: Path, arguments: argparse.Namespace) -> Asked:
        """Raises InputError: no such data set, too few training samples."""
        trained = arguments.adapter_steps * _TRAINED_ROWS
        data = {
            "instructions": arguments.instructions, "max_dev": arguments.prompts, "max_train": trained, "max_test": 1,
        }  # fmt: skip
        settings = {**foundation.settings, "data": data}
        workload = Workload.read(settings, dataset, folder, count=arguments.adapter_steps, rows=_TRAINED_ROWS)
        stepper = Stepper(next(mode for mode in MODES if mode.name == "sft"), foundation)
        for group in stepper.optimizer.param_groups:
            group["lr"] = _RATE
        for batch in workload.batches[arguments.order]:
            stepper.step(stepper.prepare(batch, workload.beta))
        data |= {"dataset": dataset, "path": str(folder / dataset)}
        config = run_config({**settings, "data": data, "prompt": {"order": arguments.order}})
        run_data = RunData.load(config, None)
        evaluator = Evaluator(config, run_data, foundation.tokenizer)
        samples = evaluator.samples(run_data.sets[0], "dev", arguments.noise)
        scored, _ = evaluator.questions(run_data.sets[0], samples)
        plainly = [Question(question.prompt) for question in scored]
        longest = evaluator.answer_limits[run_data.sets[0].name]
        return cls(config, evaluator, plainly, scored, longest, stepper.passes.lm.module.eval())

    def ask(self, way: Callable[..., Any], questions: Sequence[Question], model: nn.Module) -> list[str]:
        """The answers that a way (`plain.ask` or `ask`) gets."""
        tokenizer, size = self.evaluator.tokenizer, self.config.eval.batch_size
        replies = way(model, tokenizer, questions, max_new_tokens=self.max_new_tokens, batch_size=size)
        return texts_of(replies, tokenizer)


def row_of(asked: Asked, name: str, rounds: int) -> dict[str, Any]:
    """A row of the table for the model as it is. Raises SystemExit where answers differ in float32."""
    exact = copy.deepcopy(asked.model).float()
    expected = asked.ask(plain.ask, asked.questions, exact)
    if off := _unequal(asked.ask(ask, asked.questions, exact), expected):
        raise SystemExit(f"the gate is red: {off} of {len(expected)} answers differ in float32; no speed is reported")
    del exact
    costs: dict[str, list[Cost]] = {"plain": [], "kept": [], "scored": []}
    answers: dict[str, list[str]] = {}

    def timed(way: str, call: Callable[..., Any], questions: Sequence[Question]) -> None:
        def run() -> None:
            answers[way] = asked.ask(call, questions, asked.model)

        costs[way].append(time_of(run))

    for number in range(rounds):
        timed("plain", plain.ask, asked.questions)
        timed("kept", ask, asked.questions)
        timed("scored", ask, asked.scored)
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    with _phases() as seconds:
        asked.ask(ask, asked.questions, asked.model)

    def ratio(way: str) -> float:
        return statistics.median(a.counts / b.counts for a, b in zip(costs["plain"], costs[way], strict=True))

    number = len(asked.questions)
    ids = asked.evaluator.tokenizer(answers["kept"], add_special_tokens=False)["input_ids"]
    prefixes = shared_prefixes([question.prompt for question in asked.questions])
    return {
        "prompts": number,
        "prompt_tokens": statistics.mean(len(question.prompt) for question in asked.questions),
        "shared_tokens": statistics.mean(len(prefixes.texts[at]) for at in prefixes.which),
        "answer_tokens": statistics.mean(map(len, ids)),
        "max_new_tokens": asked.max_new_tokens,
        **{f"{way}_seconds": statistics.median(c.counts for c in costs[way]) for way in costs},
        **{f"{way}_iqr": spread([c.counts for c in costs[way]]) for way in costs},
        "plain_per_second": number / statistics.median(c.counts for c in costs["plain"]),
        "kept_per_second": number / statistics.median(c.counts for c in costs["kept"]),
        "ratio": ratio("kept"),
        "scored": ratio("scored"),
        "differ": _unequal(answers["kept"], answers["plain"]),
        "differ_scored": _unequal(answers["scored"], answers["plain"]),
        "differ_float32": 0,
        "off_plain": _unequal(answers["plain"], expected),
        "off_kept": _unequal(answers["kept"], expected),
        "read_share": seconds["read"] / (seconds["read"] + seconds["decide"]),
        "rounds": rounds,
    }


def _unequal(ours: Sequence[str], theirs: Sequence[str]) -> int:
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _phases() -> Iterator[dict[str, float]]:
    """Inside, seconds of the model's passes: of more than one token a row (read) and of one (decide)."""
    seconds, own = {"read": 0.0, "decide": 0.0}, CachedLM._pass

    def timed(lm: CachedLM, rows: Rows, tokens: Sequence[list[int]], *seen: Tensor) -> Tensor:
        logits: list[Tensor] = []
        cost = time_of(lambda: logits.append(own(lm, rows, tokens, *seen)))
        seconds["read" if max(map(len, tokens)) > 1 else "decide"] += cost.counts
        return logits[0]

    CachedLM._pass = timed  # type: ignore[assignment, method-assign]
    try:
        yield seconds
    finally:
        CachedLM._pass = own  # type: ignore[method-assign]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything the command does but printing. Raises InputError for an unknown data set."""
    foundation = Foundation.for_this_device({"model": {"name_or_path": arguments.model, "attn": arguments.attn}})
    rows = []
    for dataset in arguments.datasets.split(","):
        asked = Asked.read(foundation, dataset, arguments.data, arguments)
        common = {"dataset": dataset, "instructions": arguments.instructions, "order": arguments.order}
        common["noise"] = arguments.noise
        name = f"{dataset}, {arguments.instructions}"
        rows.append({**common, "model": "tuned", **row_of(asked, name, arguments.rounds)})
        if arguments.untouched:
            for module in asked.model.modules():
                if hasattr(module, "lora_B"):
                    for weights in cast(nn.Module, module.lora_B).parameters():
                        weights.data.zero_()
            rows.append({**common, "model": "untouched", **row_of(asked, f"{name}, untouched", arguments.rounds)})
    return {
        "dtype": str(foundation.dtype).removeprefix("torch."),
        "model": Path(arguments.model).name,
        "attn": arguments.attn,
        "adapter_steps": arguments.adapter_steps,
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder with a folder a data set")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="names, separated by commas")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    parser.add_argument("--instructions", choices=["concise", "detailed"], default="concise")
    parser.add_argument("--order", choices=["paper", "instruction_last"], default="paper", help="as prompt.order")
    parser.add_argument("--noise", default="none", help="bend every instruction by it, as `anit eval --noise`")
    parser.add_argument("--attn", default="sdpa", help="the attention, as model.attn")
    parser.add_argument("--prompts", type=int, default=64, help="how many of each dev split")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each way")
    parser.add_argument("--adapter-steps", type=int, default=20, help="steps that the adapter is trained for")
    parser.add_argument("--untouched", action="store_true", help="also the model without the adapter")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--add", action="store_true", help="keep the rows that FILE has of other workloads")
    arguments = parser.parse_args(argv)
    if arguments.add and not arguments.json:
        parser.error("--add: keeps the rows of a file; name it with --json")
    if not (torch.cuda.is_available() or torch.get_num_threads() == 1):
        print("note: set OMP_NUM_THREADS=1 for CPU times that another machine can repeat", file=sys.stderr)
    try:
        result = run(arguments)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.add and arguments.json.exists():
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
        new = [_workload(row) for row in result["rows"]]
        result["rows"] = [row for row in kept if _workload(row) not in new] + result["rows"]
    show(result["rows"], COLUMNS)
    if arguments.json:
        write_json(arguments.json, result)


def _workload(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("dataset", "instructions", "order", "noise", "model"))


if __name__ == "__main__":
    main()
