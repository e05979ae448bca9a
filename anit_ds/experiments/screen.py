"""The screen of settings on dev: which of many arms is worth a comparison, before any test split is read.

A table with a row for each arm: for each data set the mean dev score and the dev loss of the gold answers beside
`sft`'s on the same seeds, and over all of them the ratio of the losses, which weighs every data set alike. And a figure
of both, cosine of delta1 and g, and adversarial loss against the attack's step, a line for each size of the random
start. Arms run with unequally many seeds, so only what is paired is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from anit_ds.experiments.entries import BASELINE, NOTHING, Entry, Table, place_of
from anit_ds.experiments.tables import grouped, row_names

Result = Mapping[str, Any]
# What an arm's step is called in its configuration: fgsm and fgm have no step beside the radius.
_STEP = {"fgsm": "method.eps", "fgm": "method.eps"}


def screen(results: Sequence[Result]) -> Table:
    """Dev micro-F1 (100 x) and NLL per answer, means over seeds; in brackets the paired difference to sft."""
    datasets = list(dict.fromkeys(r["dataset"] for r in results))
    sft = {place_of(r): r for r in results if r["arm"] == BASELINE}
    of_arm = grouped(results, lambda r: r["arm"]).values()
    several_noises = any(len({r["noise"] for r in group}) > 1 for group in of_arm)
    rows: list[list[str | Entry]] = []
    for arm, group in grouped(results, row_names(results, without=() if several_noises else ("noise",))).items():
        row: list[str | Entry] = [arm]
        for dataset in datasets:
            own = [r for r in group if r["dataset"] == dataset]
            row += [_beside(own, sft, "dev_micro_f1", 100, 1), _beside(own, sft, "dev_nll", 1, 3)]
        late = [r["attack"] for r in group]
        row += [
            _ratio(group, sft),
            _mean([a.get("nrm/cosine") for a in late]),
            _mean([a.get("loss/adversarial") for a in late]),
        ]
        row += [f"{mean(r['train_seconds'] for r in group):.0f}", str(len(group))]
        rows.append(row)
    columns = ["arm", *(f"{d}, {what}" for d in datasets for what in ("dev F1", "dev NLL")), f"NLL / {BASELINE}'s"]
    several = len({r["seed"] for r in results}) > 1
    spread = ", ± their standard deviation over seeds" if several else ""
    unread = all(r["micro_f1"] is None for r in results)
    notes = [
        *(["no test split was read"] if unread else []),
        f"NLL / {BASELINE}'s: the geometric mean over data sets and seeds ± its standard error",
    ]
    notes += [f"in brackets: differences to {BASELINE} on the same seeds{spread}"]
    return Table("screen", "Screen on dev", [*columns, "cosine", "adversarial loss", "seconds", "runs"], rows, notes)


def _beside(own: Sequence[Result], sft: Mapping[tuple[Any, ...], Result], key: str, scale: float, digits: int) -> str:
    told = [r for r in own if r.get(key) is not None]
    if not told:
        return NOTHING
    text = f"{mean(scale * r[key] for r in told):.{digits}f}"
    pairs = [(r, base) for r in told if (base := sft.get(place_of(r))) is not None and base.get(key) is not None]
    if not pairs or all(r is base for r, base in pairs):
        return text
    apart = [scale * (r[key] - base[key]) for r, base in pairs]
    spread = f" ± {stdev(apart):.{digits}f}" if len(apart) > 1 else ""
    return f"{text} ({mean(apart):+.{digits}f}{spread})"


def _ratio(group: Sequence[Result], sft: Mapping[tuple[Any, ...], Result]) -> str:
    """The geometric mean of dev NLL / sft's on the same data set and seed, ± its standard error over them."""
    pairs = [(r.get("dev_nll"), sft.get(place_of(r), {}).get("dev_nll")) for r in group]
    logs = [math.log(own / base) for own, base in pairs if own and base]
    if not logs:
        return NOTHING
    ratio = math.exp(mean(logs))
    return f"{ratio:.3f}" + (
        f" ± {ratio * stdev(logs) / math.sqrt(len(logs)):.3f}" if len(logs) > 1 and any(logs) else ""
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{mean(known):.3f}" if known else NOTHING


def draw_screen(figure: Figure, results: Sequence[Result]) -> bool:
    """Dev score and loss beside sft's on the same seeds, cosine and adversarial loss (rows) against the step, for each
    data set (columns)."""
    stepped = [r for r in results if _step(r) is not None]
    datasets = list(dict.fromkeys(r["dataset"] for r in stepped))
    if not datasets:
        return False
    base = {place_of(r): r for r in results if r["arm"] == BASELINE}
    drawn: list[tuple[str, Callable[[Result, Result | None], float | None]]] = [
        (f"dev F1 less {BASELINE}'s", lambda r, sft: _less(r, sft, "dev_micro_f1", 100)),
        (f"dev NLL less {BASELINE}'s", lambda r, sft: _less(r, sft, "dev_nll", 1)),
        ("cosine of delta1 and g", lambda r, _: r["attack"].get("nrm/cosine")),
        ("adversarial loss", lambda r, _: r["attack"].get("loss/adversarial")),
    ]
    colours = {line: colormaps["tab20"](place) for place, line in enumerate(sorted({_line(r) for r in stepped}))}
    panels = figure.subplots(len(drawn), len(datasets), sharex=True, squeeze=False)
    for dataset, column in zip(datasets, panels.T, strict=True):
        own = [r for r in stepped if r["dataset"] == dataset]
        for line, group in sorted(grouped(own, _line).items()):
            for axes, (_, value) in zip(column, drawn, strict=True):
                at: dict[float, list[float]] = {}
                for r in group:
                    if (y := value(r, base.get(place_of(r)))) is not None:
                        at.setdefault(float(_step(r) or 0), []).append(y)
                if at:
                    axes.plot(
                        *zip(*((x, mean(at[x])) for x in sorted(at)), strict=True),
                        marker="o",
                        color=colours[line],
                        label=line,
                    )
        for axes, (label, _) in zip(column, drawn, strict=True):
            axes.set(ylabel=label, xscale="log")
        for axes in column[:2]:
            axes.axhline(0, linestyle=":", color="grey")
        column[0].set(title=dataset)
        column[-1].set(xlabel="step, in units of eps_unit")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside lower left", fontsize=7)
    return True


def _less(own: Result, base: Result | None, key: str, scale: float) -> float | None:
    if base is None or own.get(key) is None or base.get(key) is None:
        return None
    return float(scale * (own[key] - base[key]))


def _step(result: Result) -> float | None:
    """The length of the attack's step; None for an arm without an attack."""
    config = result["config"]
    if "nrm/cosine" not in result["attack"] and result["method"] not in _STEP:
        return None
    step = config.get(_STEP.get(result["method"], "method.alpha"))
    return float(step) if step else None


def _line(result: Result) -> str:
    config = result["config"]
    said = [result["method"], str(config.get("method.tokens"))]
    for field in ("step", "gradient", "start", "loss", "warmup"):
        value = config.get(f"method.{field}")
        if value is not None and result["method"] == "anit":
            said.append(f"{field} {value}")
    said += [f"{config['train.epochs']:g} epochs"]
    if (views := config.get("noise.views", 1)) > 1:
        said.append(f"{config['noise.train_on']} of {views} views")
    return ", ".join([*said, f"noise {result['noise']}"])
