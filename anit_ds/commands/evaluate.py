"""`anit eval` and `anit predict`: a finished run's model, loaded and asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from anit_ds.config import Config
from anit_ds.data.examples import Sample
from anit_ds.data.noise import NOISES
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.errors import InputError
from anit_ds.evaluation.robustness import beside_raw
from anit_ds.evaluation.score import Evaluation, Evaluator, read_evaluation, write_evaluation
from anit_ds.modeling import load_adapter, load_model, load_tokenizer, resolve_dtype
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder


def evaluate_run(
    run_path: Path, *, split: str = "test", noise: str | None = None, base: bool = False, dtype: str | None = None
) -> dict[str, Evaluation]:
    """Score a run's best adapter (or with `base` the untouched model) on a split; file name -> evaluation.

    With a noise, every instruction is bent by it; `all` is raw instructions and then each noise. Where the raw answers
    are at hand (from this call or an earlier one), a noise's report has its gap and consistency too.
    Data-parallel over ranks. Raises InputError: no run, no adapter, no such noise.
    """
    if noise is not None and noise not in ("none", "all", *NOISES):
        raise InputError(f"--noise: no noise is called {noise!r}; there are {', '.join(NOISES)}, and all of them: all")
    distributed.init()
    run = RunFolder(run_path)
    config = run.load_config()
    data = distributed.main_first(lambda: RunData.load(config, run.data))
    model = _load(run, config, base=base, dtype=dtype)
    evaluator = Evaluator(config, data, load_tokenizer(config.model))
    noises = ["none", *NOISES] if noise == "all" else [noise or "none"]
    made: dict[str, Evaluation] = {}
    raw_name = _name(base, split, "none")
    for kind in noises:
        evaluation = evaluator.evaluate(model, split, noise=kind, progress=True)
        if kind != "none":
            raw = made.get(raw_name) or read_evaluation(run.eval, raw_name)
            if raw is not None:
                evaluation = beside_raw(evaluation, raw)
        made[_name(base, split, kind)] = evaluation
        write_evaluation(run.eval, _name(base, split, kind), evaluation)
    return made


def _name(base: bool, split: str, noise: str) -> str:
    return "-".join(part for part in ("base" if base else "", split, noise if noise != "none" else "") if part)


def predict_file(run_path: Path, source: str, output: str, *, dtype: str | None = None) -> None:
    """Answer the texts of a JSON-lines file: each object again, with `answer` and `items` (raw labels).

    Raises InputError: no run, no such file, a line that is no object with a text (file and line named).
    """
    distributed.init()
    run = RunFolder(run_path)
    config = run.load_config()
    data = RunData.load(config, run.data)
    rows = _read_texts(source)
    sets = [_set_of(row, data, f"{source}:{number}") for number, row in enumerate(rows, 1)]
    samples = [_as_sample(row, of, number) for number, (row, of) in enumerate(zip(rows, sets, strict=True), 1)]
    evaluator = Evaluator(config, data, load_tokenizer(config.model))
    answers = evaluator.answer(_load(run, config, dtype=dtype), samples, progress="predict")
    if distributed.rank() != 0:
        return
    lines = [
        json.dumps({**row, "answer": answer, "items": of.parse(answer).items}, ensure_ascii=False)
        for row, of, answer in zip(rows, sets, answers, strict=True)
    ]
    text = "".join(line + "\n" for line in lines)
    if output == "-":
        sys.stdout.write(text)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: cannot write {output} ({error.strerror})") from error


def _load(run: RunFolder, config: Config, *, base: bool = False, dtype: str | None = None) -> nn.Module:
    device = distributed.device()
    model = load_model(config.model, resolve_dtype(dtype or config.model.dtype, device.type))
    if not base:
        model = load_adapter(model, run.path)
    return model.to(device).eval()


def _read_texts(source: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--input: cannot read {source} ({error.strerror})") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{source}:{number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f'{source}:{number}: expected an object with a "text"')
        rows.append(row)
    return rows


def _set_of(row: dict[str, Any], data: RunData, where: str) -> DataSet:
    if len(data.sets) == 1:
        return data.sets[0]
    names = [s.name for s in data.sets]
    if row.get("dataset") not in names:
        raise InputError(f'{where}: the run is a mixture, so each line needs "dataset": one of {", ".join(names)}')
    return data[row["dataset"]]


def _as_sample(row: dict[str, Any], of: DataSet, number: int) -> Sample:
    instruction = of.instructions.first(of.version)
    return Sample(
        id=str(row.get("id", number)),
        dataset=of.name,
        text=row["text"],
        items=(),
        instruction=instruction,
        raw_instruction=instruction,
        noise="none",
        question=of.instructions.question,
        format=of.instructions.format,
        options=of.instructions.options,
        answer="",
        distance=0,
        distortion=0.0,
    )
