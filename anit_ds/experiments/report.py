"""Tables as Markdown, LaTeX and CSV, figures as PNG and SVG, and one HTML file with all of it, readable offline.

What was computed is shown without being asked for: the chart of methods, robustness, confusion matrices, and the
examples on which methods differ most. `show` adds the paper's tables and figures.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import yaml

from anit_ds.experiments import figures
from anit_ds.experiments.answers import SHOWN as ANSWERS
from anit_ds.experiments.chart import draw_methods, size_of
from anit_ds.experiments.confusion import confusions
from anit_ds.experiments.entries import Entry, Table
from anit_ds.experiments.estimate import clock
from anit_ds.experiments.examples import telling_examples
from anit_ds.experiments.grid import CompareConfig
from anit_ds.experiments.overall import overall
from anit_ds.experiments.screen import draw_screen, screen
from anit_ds.experiments.sizes import draw_sizes
from anit_ds.experiments.tables import TABLES, dev, methods
from anit_ds.files import write_atomically
from anit_ds.runfolder import versions

_CELL_COLUMNS = (
    "dataset", "arm", "noise", "omega", "instructions", "distortion", "fraction", "max_train", "transfer_from", "seed",
    "micro_f1", "dev_micro_f1", "parse_failures", "beta", "passes", "train_seconds",
)  # fmt: skip


def write_report(config: CompareConfig, results: Sequence[Mapping[str, Any]], out: Path, *, cells: int) -> Path:
    """Write OUT/tables, OUT/figures and OUT/report.html from the results of the cells that have ended, of so many;
    returns the last."""
    done = [r for r in results if r["status"] == "done"]
    tables = _tables(config, done)
    for table in tables:
        stem = out / "tables" / table.name
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stem.with_suffix(".md"), to_markdown(table))
        write_atomically(stem.with_suffix(".tex"), to_latex(table))
        write_atomically(stem.with_suffix(".csv"), to_csv(table))
    sizes = figures.draw_panels(draw_sizes, done, out / "figures" / "sizes", (3.2 * len(config.grid.datasets) + 1, 5))
    asked = [_figure(name, config, done, out) for name in config.show]
    drawn = [figure for figure in (sizes, *asked) if figure is not None]
    general = [note for note, times in Counter(note for t in tables for note in t.notes).items() if times > 1]
    constants, columns = _constant_and_varying(done)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anit_ds", "experiments"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["entry"] = lambda cell: isinstance(cell, Entry)
    page = environment.get_template("report.html.j2").render(
        title=config.title,
        done=len(done),
        total=cells,
        failed=[r for r in results if r["status"] != "done"],
        hours=clock(sum(r["train_seconds"] for r in done)),
        ranks=_several({f"{r['ranks']} rank{'s' if r['ranks'] > 1 else ''}" for r in done}),
        dtypes=_several({r["dtype"] for r in done}),
        general=general,
        charts=[_inline(svg) for svg in _charts(done, out)],
        tables=tables,
        confusions=confusions(done),
        examples=telling_examples(done),
        answers=ANSWERS,
        figures=[_inline(svg) for svg in drawn],
        curves=[_inline(svg) for svg in _curves(done, out)],
        constants=constants,
        cell_columns=columns,
        cell_rows=[[_short(r.get(column)) for column in columns] for r in done],
        configuration=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
        versions="\n".join(f"{name} {version}" for name, version in versions().items()),
    )
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _tables(config: CompareConfig, done: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What several data sets come to, if they were tested; what `show` asks for; robustness, if it was computed."""
    makers = {**TABLES, "screen": screen, "overall": overall}
    robust = ["robustness"] if any(r.get("robustness") for r in done) else []
    asked = [name for name in dict.fromkeys(["overall", *config.show, *robust]) if name in makers]
    made = [makers[name](done) for name in asked if done]
    return [table for table in made if table.rows]


def _charts(done: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """The chart of methods on each data set: on test, or on dev where no test split was read."""
    table = methods(done)
    if not table.rows:
        table = dev(done)
    drawn = []
    for column, head in enumerate(table.columns):
        if any(isinstance(row[column], Entry) for row in table.rows):
            name = re.sub(r"[^\w.+-]+", "-", f"{table.name}-{head}").strip("-")
            stem = out / "figures" / name
            draw, size = partial(draw_methods, column=column), size_of(table, column)
            drawn.append(figures.draw_panels(draw, table, stem, size))
    return [svg for svg in drawn if svg is not None]


def _constant_and_varying(done: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """(what all cells share and its value, the columns in which they differ)."""
    shown = {column: [_short(r.get(column)) for r in done] for column in _CELL_COLUMNS}
    constants = {column: texts[0] for column, texts in shown.items() if len(done) > 1 and len(set(texts)) == 1}
    return {name: text for name, text in constants.items() if text}, [c for c in _CELL_COLUMNS if c not in constants]


def to_markdown(table: Table) -> str:
    """A GitHub table with its title and notes."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    rule = line(["---"] * len(table.columns))
    notes = "".join(f"- {note}\n" for note in table.notes)
    body = "\n".join([line(table.columns), rule, *map(line, table.texts())])
    return f"**{table.title}**\n\n{body}\n\n{notes}"


def to_latex(table: Table) -> str:
    """A `table` environment with booktabs rules."""

    def line(texts: Sequence[str]) -> str:
        return " & ".join(map(_escape_latex, texts)) + r" \\"

    return "\n".join([
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape_latex(table.title)}. {_escape_latex('; '.join(table.notes))}.}}",
        rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        line(table.columns),
        r"\midrule",
        *map(line, table.texts()),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "→": r"$\to$", "–": "--"}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_csv(table: Table) -> str:
    """Columns and rows, without title and notes."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([table.columns, *table.texts()])
    return buffer.getvalue()


def _figure(name: str, config: CompareConfig, done: Sequence[Mapping[str, Any]], out: Path) -> Path | None:
    stem = out / "figures" / name
    if name == "screen":
        return figures.draw_panels(draw_screen, done, stem)
    if name == "figure2a":
        return figures.draw(figures.omega, done, "Figure 2a. Noise level", stem)
    if name not in ("figure2b", "figure2c"):
        return None
    place = "bc".index(name[-1])  # b is the first data set of the grid, c the second
    if place >= len(config.grid.datasets):
        return None
    dataset = config.grid.datasets[place].name
    title = f"Figure 2{name[-1]}. Training time against F1, {dataset}"
    return figures.draw(figures.time_against_f1, [r for r in done if r["dataset"] == dataset], title, stem)


def _curves(done: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    names = dict.fromkeys(r["dataset"] for r in done)
    drawn = [
        figures.draw(
            figures.dev_curves, [r for r in done if r["dataset"] == name], name, out / "figures" / f"dev-{name}"
        )
        for name in names
    ]
    return [svg for svg in drawn if svg is not None]


def _inline(svg: Path) -> str:
    """The <svg> element alone, in the page's own colours: its prologue names a DTD on the web, which a page must not
    fetch, and black on white would stay so in the dark."""
    text = svg.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace("#ffffff", "transparent").replace("#000000", "currentColor")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{v:.3f}" for v in value.values())
    return "" if value is None else str(value)


def _several(values: set[str]) -> str:
    return " and ".join(sorted(values)) or "nothing yet"
