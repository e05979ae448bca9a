"""A model card: what the model was trained on and how, what it scores and with what interval, and what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from anit_ds.config import Config
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.identity import not_at_default
from anit_ds.runfolder import versions

_TASKS = {
    "classification": "text-classification", "multilabel": "text-classification",
    "ner": "token-classification", "relation": "token-classification", "absa": "token-classification",
}  # fmt: skip
_TOLD = ("method.", "noise.", "lora.", "train.", "prompt.")


class Measured(NamedTuple):
    """Micro-F1 on the test split under one noise (`none`: raw instructions), its 95% interval, and how many texts."""

    dataset: str
    noise: str
    micro_f1: float
    low: float
    high: float
    n: int


def write_card(folder: Path, config: Config, data: RunData, scores: Sequence[Measured], *, whole: bool) -> None:
    """Write README.md, with the metadata that the Hugging Face hub reads."""
    raw = [score for score in scores if score.noise == "none"]
    about = ModelCardData(
        base_model=None if Path(config.model.name_or_path).exists() else config.model.name_or_path,
        library_name="transformers" if whole else "peft",
        pipeline_tag="text-generation",
        tags=["anit", "instruction-tuning", *sorted({_TASKS[s.task.name] for s in data.sets})],
        model_name=f"{Path(config.model.name_or_path).name} on {'+'.join(s.name for s in data.sets)}",
        eval_results=[_result(score, data[score.dataset]) for score in raw] or None,
    )
    parts = [f"# {about.model_name}", _about(config, data), _scores(scores), _use(config, data, whole=whole)]
    card = "\n\n".join([f"---\n{about.to_yaml()}\n---", *parts])
    ModelCard(f"{card}\n").save(folder / "README.md")


def _result(score: Measured, of: DataSet) -> EvalResult:
    return EvalResult(
        task_type=_TASKS[of.task.name], dataset_type=of.name, dataset_name=of.name, dataset_split="test",
        metric_type="f1", metric_name="micro-F1", metric_value=round(score.micro_f1, 4),
    )  # fmt: skip


def _about(config: Config, data: RunData) -> str:
    base = Path(config.model.name_or_path)  # whose place on this machine is nobody's matter
    lines = [
        f"`{base.name if base.exists() else base}`, fine-tuned with ANIT-DS by the method `{config.method.name}`.",
        "",
    ]
    lines += ["| data | task | train | dev | test |", "|---|---|---|---|---|"]
    for s in data.sets:
        sizes = " | ".join(str(len(s.split(split))) for split in ("train", "dev", "test"))
        lines.append(f"| {s.name} | {s.task.name} | {sizes} |")
    told = {path: value for path, value in not_at_default(config).items() if path.startswith(_TOLD)}
    fields = ", ".join(f"`{path}: {value}`" for path, value in told.items())
    made = ", ".join(f"{name} {version}" for name, version in (config.versions or versions()).items())
    return "\n".join([*lines, "", f"Settings that are not defaults: {fields or 'none'}.", "", f"Trained with {made}."])


def _scores(scores: Sequence[Measured]) -> str:
    if not scores:
        return "## Scores\n\nThe test split was not scored."
    lines = [
        "## Scores",
        "",
        "Micro-F1 on the test split, with the 95% bootstrap interval over its texts (one seed).",
        "",
    ]
    lines += ["| data | instruction | micro-F1 | texts |", "|---|---|---|---|"]
    for score in scores:
        under = "raw" if score.noise == "none" else f"bent by {score.noise}"
        interval = f"{100 * score.micro_f1:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
        lines.append(f"| {score.dataset} | {under} | {interval} | {score.n} |")
    return "\n".join(lines)


def _use(config: Config, data: RunData, *, whole: bool) -> str:
    kinds = ", ".join(s.name for s in data.sets)
    load = "AutoModelForCausalLM.from_pretrained(FOLDER)" if whole else "PeftModel.from_pretrained(base, FOLDER)"
    ask = "The chat template takes a message as the text and puts the prompt of training around it."
    if len(data.sets) > 1:
        ask = "prompt.json has the prompt of each data set."
    return f"""## Use

Load it with `{load}`. {ask} Decode greedily.

## Limits

It answers in the form of its training data ({kinds}) and was measured on nothing else. Texts beyond
{config.data.max_length} tokens with their prompt were cut in training. One run with one seed: another seed gives other
scores. The licences of the base model and of the data apply."""
