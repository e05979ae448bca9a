"""`anit export`: a run's adapter, or base and adapter merged, with its prompt and a card, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from anit_ds.config import Config
    from anit_ds.export import Measured
    from anit_ds.runfolder import RunFolder


@click.command(short_help="Write the adapter, or base and adapter merged.")
@click.argument("run", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--merge", is_flag=True, help="Base and adapter in one checkpoint that transformers loads alone.")
@click.option("--push", "repository", default=None, metavar="OWNER/NAME", help="Send OUT to this repository on the "
              "Hugging Face hub too, with the token in HF_TOKEN; it is made private.")  # fmt: skip
@click.option("--public", is_flag=True, help="With --push: a repository that is not there yet is made public.")
def export(run: str, out: str, merge: bool, repository: str | None, public: bool) -> None:
    """Write the adapter of RUN to OUT in PEFT's format, or with --merge the whole model; of a run that trained every
    weight the whole model.

    Beside the weights stand README.md, a model card with the scores; prompt.json; a chat template that asks the model
    as training did; and generation settings.
    """
    from anit_ds.errors import InputError
    from anit_ds.export import export_best, export_merged, push, refuse_push

    if repository is not None:
        refuse_push(repository)
    elif public:
        raise InputError("--public: is of the repository that --push names, and there is none")

    def beside(folder: Path) -> list[str]:
        return _beside(folder, Path(run), merged=merge)

    if merge:
        difference, notes = export_merged(Path(run), Path(out), beside)
        told = f"its logits differ from base + adapter's by {difference:.1e} of their spread"
        click.echo(f"merged model written to {out}; {told}")
    else:
        notes = export_best(Path(run), Path(out), beside)
        adapter = (Path(out) / "adapter_config.json").is_file()
        load = f"PeftModel.from_pretrained(base, {out!r})" if adapter else f"loaded by transformers alone from {out!r}"
        click.echo(f"{'adapter' if adapter else 'model'} written to {out}: {load}")
    for note in notes:
        click.echo(note)
    if repository is not None:
        click.echo(f"sent to {push(Path(out), repository, public=public)}")


def _beside(folder: Path, run_path: Path, *, merged: bool) -> list[str]:
    """Write the prompt and the card; returns what has to be said about them."""
    from anit_ds.data.rundata import RunData
    from anit_ds.errors import InputError
    from anit_ds.export import write_card, write_prompt
    from anit_ds.modeling import load_tokenizer
    from anit_ds.runfolder import RunFolder

    run = RunFolder(run_path)
    config = run.load_config()
    data = RunData.stored(config, run.data)
    scores, notes = _scores(run, config)
    try:
        tokenizer = load_tokenizer(config.model)
    except InputError as error:
        notes.append(f"without a chat template: {error}")
    else:
        notes += write_prompt(folder, config, data, tokenizer, run.noted().get("answer_limits", {}))
    write_card(folder, config, data, scores, whole=merged or config.lora is None)
    return notes


def _scores(run: RunFolder, config: Config) -> tuple[list[Measured], list[str]]:
    """What eval/ has of the test split, with intervals; and what it has no more."""
    from anit_ds.evaluation.report import AnsweredBy, read_evaluation, reports_of
    from anit_ds.experiments.statistics import example_counts, score
    from anit_ds.export import Measured
    from anit_ds.modeling import weights_about
    from anit_ds.sealed import Damaged

    found, problems = [], []
    step = weights_about(run.best(config)).get("step")
    for file in sorted(run.eval.glob("test*.json")):
        try:
            evaluation = read_evaluation(run.eval, file.stem)
        except Damaged as error:
            problems.append(f"a score is left out of the card: {error}")
            continue
        if evaluation is None or evaluation.report.get("constrained"):
            continue
        if (theirs := AnsweredBy.of(evaluation.report).step) != step:
            problems.append(f"a score is left out of the card: {file} is of step {theirs}, the weights of {step}")
            continue
        for name, report in reports_of(evaluation.report).items():
            rows = [row for row in evaluation.predictions if row["dataset"] == name]
            interval = score([[example_counts(row) for row in rows]])
            found.append(Measured(name, report["noise"], interval.mean, interval.low, interval.high, len(rows)))
    return sorted(found, key=lambda of: (of.dataset, of.noise != "none")), problems
