"""Labels scored beside greedy answers, per CPU second: a classifier's run asked about its test split.

    python benchmarks/labels.py RUN
    python benchmarks/labels.py RUN --labels 77 --json results/answers/labels.json

greedy: the answer alone. labels: every label's log-probability, all labels of a text in one row (evaluation/trie.py).
one by one: each label in a row of its own. both: greedy and labels, as `anit eval` and `anit predict` ask. With
`--labels N` the labels are N made-up ones of two words each. Before anything is timed the gate: labels together and one
by one must give the same probabilities to 1e-5, in float32. The ways take turns; figures are medians of their rounds'
CPU time (on a GPU, of the time until the device is done).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import Cost, show, time_of, write_json

from anit_ds.evaluation.cached import CachedLM
from anit_ds.evaluation.decode import ask
from anit_ds.evaluation.finished import FinishedRun
from anit_ds.evaluation.questions import Question

COLUMNS = (
    "dataset",
    "texts",
    "labels",
    "label_tokens",
    "greedy",
    "labels_a_second",
    "one_by_one",
    "both",
    "difference",
)
_WORDS = (
    "card", "cash", "bank", "transfer", "refund", "limit", "account", "top", "fee", "rate", "lost", "pending", "failed",
    "wrong", "early", "late", "exchange", "payment", "balance", "password",
)  # fmt: skip
_SAME = 1e-5


@contextmanager
def _one_by_one() -> Iterator[None]:
    own = CachedLM.takes_tries
    CachedLM.takes_tries = lambda lm, longest: False  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        CachedLM.takes_tries = own  # type: ignore[method-assign]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything the command does but printing. Raises SystemExit where probabilities differ; InputError for no run."""
    asked = FinishedRun(arguments.run, dtype="float32")
    of, evaluator = asked.data.sets[0], asked.evaluator
    prompts = evaluator.encoder.encode_prompts(list(of.split("test"))[: arguments.texts])
    names = list(of.instructions.labels.values())
    if arguments.labels:
        pairs = [f"{a} {b}" for a in _WORDS for b in _WORDS if a != b]
        names = random.Random(0).sample(pairs, arguments.labels)
    labels = evaluator.encoder.encode_answers(names)
    limit = evaluator.answer_limits[of.name]

    def replies(answers: Sequence[list[int]], max_new_tokens: int) -> torch.Tensor:
        questions = [Question(prompt, answers) for prompt in prompts]
        size = asked.config.eval.batch_size
        told = ask(
            asked.model, evaluator.tokenizer, questions, max_new_tokens=max_new_tokens, one_line=True, batch_size=size
        )
        return torch.tensor([reply.log_probabilities for reply in told])

    def one_by_one() -> torch.Tensor:
        with _one_by_one():
            return replies(labels, 0)

    difference = (replies(labels, 0).softmax(1) - one_by_one().softmax(1)).abs().max().item()
    if difference > _SAME:
        raise SystemExit(f"the gate is red: probabilities differ by {difference:.1e}; no speed is reported")
    ways = {
        "greedy": lambda: replies((), limit), "labels_a_second": lambda: replies(labels, 0),
        "one_by_one": one_by_one, "both": lambda: replies(labels, limit),
    }  # fmt: skip
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, call in ways.items():
            costs[way].append(time_of(call))
    row = {
        "dataset": of.name, "texts": len(prompts), "labels": len(labels), "label_tokens": sum(map(len, labels)),
        **{way: len(prompts) / statistics.median(cost.counts for cost in of) for way, of in costs.items()},
        "difference": difference, "rounds": arguments.rounds,
    }  # fmt: skip
    return {
        "dtype": "float32",
        "model": Path(asked.config.model.name_or_path).name,
        "rows": [row],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a classifier's run")
    parser.add_argument("--texts", type=int, default=64, help="how many of the test split")
    parser.add_argument("--labels", type=int, default=0, help="so many made-up labels in place of the run's own")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each way")
    parser.add_argument("--json", type=Path, help="also write the row here, behind those it has")
    arguments = parser.parse_args(argv)
    result = run(arguments)
    show(result["rows"], COLUMNS)
    if arguments.json:
        if arguments.json.exists():
            result["rows"] = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"] + result["rows"]
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
