"""What the commands print: short tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from anit_ds.data.rundata import DataSet, RunData
from anit_ds.data.survey import Survey
from anit_ds.data.tasks import NONE

_WIDTH = 110
_MOST_LABELS = 12
_LONGEST_LINE = 1000  # characters


def describe_data(data: RunData, folder: Path, surveys: Sequence[Survey] = ()) -> str:
    """Counts, beta and three examples of each data set, raw beside noisy, and what its survey found."""
    told = [_describe_set(s) for s in data.sets]
    for number, found in enumerate(surveys):
        told[number] += "\n" + _describe_survey(found)
    return "\n\n".join(told) + f"\n\nwritten to {folder}"


def _describe_survey(found: Survey) -> str:
    total = found.labels.total()
    shown = [f"{label} {count} ({count / total:.1%})" for label, count in found.labels.most_common(_MOST_LABELS)]
    more = len(found.labels) - len(shown)
    lines = ["labels in train: " + ", ".join(shown) + (f" and {more} more" if more else "")]
    for split, of in found.lengths.items():
        what = "prompt and answer" if split == "train" else "prompt"
        too_long = f"{of.too_long} of {of.measured} longer than data.max_length"
        if of.left_out:
            too_long += f", {of.left_out} even without a text"
        lines.append(
            f"{found.unit} of {split} ({what}): median {of.median}, 95% up to {of.most}, longest {of.longest}"
            + (f"; {too_long}" if found.unit == "tokens" else "")
        )
    if found.unit != "tokens":
        lines.append(f"note: the model's tokenizer is not on this machine, so these are {found.unit}, not tokens")
    if found.absent:
        id, span = found.absent[0]
        lines.append(
            f"note: {len(found.absent)} of {found.spans} spans of train do not occur in their text, such as "
            f"{span[:60]!r} in {id}"
        )
    prompt = map(_clipped, found.prompt.split("\n"))
    lines += ["the first training sample, with its answer:", *(f"    {line}" for line in prompt)]
    return "\n".join(lines)


def _clipped(line: str) -> str:
    """A line of a prompt, whose text may be a book."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ... ({len(line):,} characters)"


def _describe_set(of: DataSet) -> str:
    manifest = of.noisy.manifest
    counts, noise, measured = manifest["counts"], manifest["noise"], manifest["distortion"]
    lines = [
        f"{of.name} ({of.task.name}): {counts['train']} train, {counts['dev']} dev, {counts['test']} test"
        + (f", {counts['skipped']} lines skipped" if counts["skipped"] else "")
        + (f", {counts['left_out']} left out" if counts.get("left_out") else ""),
        f"noise {noise['kind']}, omega {noise['omega']}, phi {noise['phi']}: "
        f"{counts['noisy']} noisy, {counts['raw']} raw instructions",
        f"beta {measured['beta']:.4f} ({measured['kind']}, normalised by {measured['normalised_by']}"
        + (f": {measured['why']})" if measured.get("why") else ")"),
        *(f"note: {note}" for note in manifest["notes"]),
    ]
    noisy = [s for _, s in zip(range(1000), of.split("train"), strict=False) if s.noise != "none"][:3]
    for sample in noisy:
        lines += [
            f"  {sample.id}  d = {sample.distance}, d' = {sample.distortion:.3f}",
            f"    raw    {shorten(sample.raw_instruction, _WIDTH)}",
            f"    noisy  {shorten(sample.instruction, _WIDTH)}",
        ]
    return "\n".join(lines)


def describe_summary(summary: dict[str, Any], folder: Path) -> str:
    """The end of a training: scores, time, and where things are."""
    lines = [f"{summary['method']} on {summary['dataset']}: {summary['steps']} steps, {summary['train_seconds']:.0f} s"]
    if summary["before"]:
        lines.append(f"test micro-F1 before  {summary['before']['micro_f1']:.4f}")
    if summary["dev"]:
        lines.append(f"dev  micro-F1         {summary['dev']['micro_f1']:.4f}  (step {summary['dev']['step']}, kept)")
    if summary["after"]:
        lines.append(f"test micro-F1 after   {summary['after']['micro_f1']:.4f}")
    for noise, under in summary["robustness"].items():
        lines.append(
            f"  under {noise:<12}     {under['micro_f1']:.4f}  ({under['gap']:+.4f}, {under['consistency']:.1%} equal)"
        )
    if why := summary.get("stopped_early"):
        lines.append(why)
    if was := summary.get("extended_from"):
        lines.append(
            f"went on from {', '.join(map(str, was))} steps, made on the learning rates of a shorter run: not the same "
            "as this many from the start"
        )
    if lost := summary.get("nonfinite_steps"):
        lines.append(f"{lost} of {summary['steps']} steps had a loss or a gradient that was not finite: see the log")
    if cut := ", ".join(f"{count} of {split}" for split, count in summary["truncated"].items() if count):
        lines.append(f"texts cut to fit data.max_length: {cut}")
    if summary["left_out"]:
        lines.append(f"{summary['left_out']} training samples left out: without a text they exceed data.max_length too")
    kept = "adapter" if (folder / "adapter").is_dir() else "model"
    lines.append(f"{kept:<12} {folder / kept}")
    if (folder / "tensorboard").is_dir():
        lines.append(f"TensorBoard  tensorboard --logdir {folder / 'tensorboard'}")
    return "\n".join(lines)


def describe_evaluation(name: str, report: dict[str, Any]) -> str:
    """The score of each data set."""
    rows = report.get("datasets") or {report["dataset"]: report}
    lines = []
    for dataset, r in rows.items():
        lines.append(
            f"{dataset} {name}: micro-F1 {r['micro_f1']:.4f}  precision {r['precision']:.4f}  "
            f"recall {r['recall']:.4f}  unparsed answers {r['parse_failures']:.1%}  n {r['n']}"
        )
        lines += [f"  {r['cut']} answers were cut off at their limit"] if r["cut"] else []
        lines += [f"  {r['text_cut']} texts lost their end to data.max_length"] if r.get("text_cut") else []
        lines += _describe_labels(r["labels"]) if r.get("labels") else []
        lines += _describe_multilabel(r) if r.get("task") == "multilabel" else []
        lines += _describe_nothing(r["nothing"], r["micro_f1"]) if r.get("nothing") else []
        lines += [f"  {note}" for note in r["notes"]]
    if "consistency" in report:
        lines.append(
            f"  against raw instructions: micro-F1 {report['gap']:+.4f}, equal answers {report['consistency']:.1%}"
        )
    if len(rows) > 1:
        lines.append(f"mean micro-F1 {report['micro_f1']:.4f}")
    return "\n".join(lines)


def describe_answer(row: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """What a run says of one text: its answer, each label's probability or each constrained item's score. `words`: what
    labels are answered with."""
    marks = [text for key, text in (("cut", "cut off at its limit"), ("malformed", "not parsed whole")) if key in row]
    lines = [(row["answer"] or "(an empty answer)") + (f"   ({', '.join(marks)})" if marks else "")]
    likely = row.get("probabilities", {})
    if likely and [(row["label"],)] != [tuple(item) for item in row["items"]]:
        lines.append(f"by probability: {words.get(row['label'], 'no label')}")
    scored = sorted(((words[label], p) for label, p in likely.items()), key=lambda pair: -pair[1])
    scored += [(": ".join(item), score) for item, score in zip(row["items"], row.get("scores", ()), strict=False)]
    scored += [(f"{NONE}, that there is no item", row["none"])] if row.get("none") is not None else []
    width = max((len(name) for name, _ in scored), default=0)
    return "\n".join([*lines, *(f"  {name:<{width}}  {p:.4f}  {'#' * round(30 * p)}".rstrip() for name, p in scored)])


def _describe_nothing(nothing: Mapping[str, Any], greedy: float) -> list[str]:
    """The score where `None` is said from a threshold on, and whether one that was fitted is worth using."""
    if nothing["threshold"] is None:
        return ["  no --threshold for None gets an item right"]
    worth = "; the best here, which None=dev takes" if nothing["micro_f1"] > greedy else "; no better"
    return [
        f"  --threshold None={nothing['threshold']:.15g}: micro-F1 {nothing['micro_f1']:.4f}  "
        f"precision {nothing['precision']:.4f}  recall {nothing['recall']:.4f}  None {nothing['said']} times"
        + (worth if nothing["fitted"] else "")
    ]


def _describe_multilabel(report: dict[str, Any]) -> list[str]:
    """How the labels of texts with several did, each by itself where they are few."""
    lines = [f"  macro-F1 {report['macro_f1']:.4f}  subset accuracy {report['subset_accuracy']:.4f}"]
    if len(report["per_type"]) > _MOST_LABELS:
        return lines
    rows = [["label", "texts", "precision", "recall", "F1"]]
    for name, of in report["per_type"].items():
        rows.append([name, str(of["support"]), *(f"{of[k]:.4f}" for k in ("precision", "recall", "f1"))])
    return lines + _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells below each other, the first of each row at its left, the others at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["    " + "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in rows]


def _describe_labels(labels: dict[str, Any]) -> list[str]:
    """How the labels chosen by probability did, and for a few labels which were taken for which."""
    said = f"  by probability: micro-F1 {labels['micro_f1']:.4f}  macro-F1 {labels['macro_f1']:.4f}  "
    said += f"calibration error {labels['ece']:.4f}"
    if labels["temperature"]:
        said += f", {labels['ece_calibrated']:.4f} at the temperature {labels['temperature']:.2f} of dev"
    lines = [said]
    if labels["thresholds"]:
        reached = ", ".join(f"{label} from {p:g}" for label, p in labels["thresholds"].items())
        lines.append(f"  thresholds: {reached}; {labels['abstained']} without a label")
    names = labels["names"]
    if len(names) > _MOST_LABELS:
        return lines
    columns = [*names, "(none)"] if labels["abstained"] else names
    rows = [["gold \\ said", *columns, "precision", "recall", "F1"]]
    for name, counts in zip(names, labels["confusion"], strict=True):
        of = labels["per_type"].get(name, {"precision": 0.0, "recall": 0.0, "f1": 0.0})
        rows.append([name, *map(str, counts[: len(columns)]), *(f"{of[k]:.4f}" for k in ("precision", "recall", "f1"))])
    return lines + _table(rows)
