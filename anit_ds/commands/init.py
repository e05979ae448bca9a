"""`anit init`: a configuration and instructions for data of one's own, written from a look at the data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from anit_ds.data.table_guess import Beginning

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@click.command(short_help="Write a configuration and instructions for data of your own.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--data", "source", required=True, metavar="FILE", help="CSV, TSV, JSON, JSON lines, Parquet or Arrow; a "
              "folder with train.* in it, or one of save_to_disk; or a hub id.")  # fmt: skip
@click.option("--task", default=None, help="classification, multilabel, ner, relation or absa; by default what the "
              "columns say.")  # fmt: skip
@click.option("--name", default=None, help="What the data set is called; by default the file's name.")
@click.option("--text", default=None, metavar="COLUMN", help="Where the text is.")
@click.option("--label", "labels", multiple=True, metavar="COLUMN", help="Classification: where the label is; "
              "multilabel: where the labels are, or once for each column of 0 and 1.")  # fmt: skip
@click.option("--separator", default=None, help="Multilabel: what stands between the labels in a cell of text.")
@click.option("--entities", default=None, metavar="COLUMN", help="ner: where the entities are, by their places.")
@click.option("--items", default=None, metavar="COLUMN", help="Where the items are, as [label, span, ...].")
@click.option("--model", default=_MODEL, show_default=True, help="A hub id or a folder.")
@click.option("--without-opposites", is_flag=True, help="Leave out instructions that ask for something else; without "
              "them the noise `opposite` has nothing to draw from.")  # fmt: skip
def init(
    folder: str,
    source: str,
    task: str | None,
    name: str | None,
    labels: tuple[str, ...],
    separator: str | None,
    model: str,
    without_opposites: bool,
    **columns: str,
) -> None:
    """Look at data of your own and write DIR/NAME.yaml, a run's configuration, and DIR/instructions.yaml.

    \b
        anit init spam --data mails.csv
        anit train spam/mails.yaml

    Nothing that is there is overwritten.
    """
    from anit_ds.data.corpora import DATASETS, dataset_info
    from anit_ds.data.table_guess import look_at
    from anit_ds.errors import InputError
    from anit_ds.files import write_atomically

    name = name or re.sub(r"[^\w.-]+", "-", Path(source).stem)
    place, instructions, config = Path(folder), Path(folder) / "instructions.yaml", Path(folder) / f"{name}.yaml"
    if config == instructions:
        raise InputError("--name: instructions.yaml holds the instructions; give the data another name with --name")
    for file in (instructions, config):
        if file.exists():
            raise InputError(f"{file}: already there; choose another DIR or --name")
    if name in DATASETS:
        raise InputError(f"--name: {name} is a data set known by name; give yours another one with --name")
    given = {what: column for what, column in columns.items() if column is not None}
    found = look_at(source, task, given, labels, separator)
    dataset_info(name, found.columns)
    said = _instructions(found, source, opposites=not without_opposites)
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(instructions, said)
        write_atomically(config, _config(found, name, source, model, instructions))
    except OSError as error:
        raise InputError(f"{place}: cannot write there ({error.strerror})") from error
    _check(config)
    click.echo(_describe(found, source))
    click.echo(f"written: {config} and {instructions}; make the labels and instructions your own there, then\n")
    skip = " data.on_error=skip" if found.broken else ""  # where it is meant, the user writes it into the YAML
    click.echo(f"    anit data {config}{skip}\n    anit train {config}{skip}")


_ABOVE_INSTRUCTIONS = """\
# What the model is told to do; docs/data-formats.md explains every field. `labels`: from what the data have to what the
# model says. `concise`: wordings of one instruction; add what somebody must know who has never seen these data.
# `opposite`: what the noise of that name draws from.
"""
_ABOVE_CONFIG = """\
# `anit config` prints every field with its meaning; docs/methods.md says when the attack of `anit` is worth its cost,
# which is two passes: `sft` makes one, and `noisy_sft` on bent instructions.
"""


def _instructions(found: Beginning, source: str, *, opposites: bool) -> str:
    """The file's text. Raises InputError for labels that no instructions can have, before anything is written."""
    from anit_ds.configfile import validated
    from anit_ds.data.default_instructions import instructions_for
    from anit_ds.data.instructions import Instructions
    from anit_ds.yamlfile import dump_yaml

    fields = instructions_for(found, opposites=opposites)
    validated(fields, Instructions, source=source)
    return _ABOVE_INSTRUCTIONS + dump_yaml(fields)


def _config(found: Beginning, name: str, source: str, model: str, instructions: Path) -> str:
    from anit_ds.yamlfile import dump_yaml

    return _ABOVE_CONFIG + dump_yaml({
        "model": {"name_or_path": model},
        "data": {"dataset": name, "path": source, "columns": found.columns.model_dump(mode="json", exclude_none=True),
                 "instructions": "concise", "instructions_file": str(instructions)},
        "prompt": {"order": "instruction_last"},
        "method": {"name": "anit", "preset": "ours"},
        "lora": {"r": 16, "alpha": 16},
        "train": {**_length(found), "micro_batch": 4, "lr": 1e-3},
        "out": str(Path("runs") / name),
    })  # fmt: skip


def _length(found: Beginning) -> dict[str, int]:
    """Epochs and the global batch: of few rows small batches, and more epochs where an answer is written out, towards
    150 steps where 16 samples a step would leave a task half learnt (docs/data-formats.md)."""
    epochs = 6 if found.rows < 1000 and found.task != "classification" else 3
    batch = next((size for size in (16, 8) if epochs * 0.8 * found.rows / size >= 150), 4)
    return {"epochs": epochs, "global_batch": batch}


def _check(config: Path) -> None:
    """What was just written must be readable: a name or label that is not would otherwise show at the next command."""
    from anit_ds.configfile import load_config
    from anit_ds.data.mixture import portions

    for portion in portions(load_config(config).data):
        portion.instructions()


def _describe(found: Beginning, source: str) -> str:
    shown = [f"{label} {count}" for label, count in found.labels.most_common(12)]
    more = f" and {len(found.labels) - len(shown)} more" if len(found.labels) > len(shown) else ""
    columns = found.columns.model_dump(mode="json", exclude_none=True, exclude={"separator"})
    used = [f"{key} from {_named(name)}" for key, name in columns.items()]
    used += [f"separated by {found.columns.separator!r}"] if found.columns.separator else []
    lines = [
        f"{source}: {found.rows} rows of {found.task}; {', '.join(used)}",
        "labels: " + ", ".join(shown) + more,
    ]
    if found.broken:
        lines.append(
            f"{found.broken} rows cannot be read: {found.why} (data.on_error: skip, in the YAML, leaves them out)"
        )
    return "\n".join(lines)


def _named(columns: str | list[str]) -> str:
    return ", ".join(map(repr, [columns] if isinstance(columns, str) else columns))
