"""The YAML of `anit compare`: every field, its meaning and its default. cells.py has what its axes span.

base:  {...}                       a run's configuration without what the grid decides
grid:  {methods: [...], noises: [...], datasets: [...], seeds: [...], ...}
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Columns, MixItem, NoiseKind, PathText, Section
from anit_ds.configfile import annotated
from anit_ds.errors import shown

Shown = Literal[
    "methods", "table1", "table2", "table3", "table4", "figure2a", "figure2b", "figure2c", "robustness", "screen"
]  # fmt: skip
MOST_CELLS = 10_000
"""Cells of a grid, and trials of a method: more are a mistake in an axis."""
# What the grid decides for every cell: a value in `base` would be overwritten without a word.
_DECIDED = ("data.dataset", "data.path", "data.mix", "data.fraction", "data.instructions", "noise.kind", "noise.omega",
            "distortion.kind", "method", "train.seed", "out")  # fmt: skip


class MethodSpec(BaseModel):
    """A method of the comparison: a name, or a name with fields of a run's `method` section."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    """One of the methods of a run's `method.name`."""
    label: str = ""
    """What tables call it; by default its name, and its preset where one is given."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the run's configuration for this method, such as {train.lr: 3e-4}."""
    epochs_factor: float = Field(1.0, gt=0)
    """Times the train.epochs that a data set has by itself: 2 gives sft the compute of an attack's two passes."""
    stays: bool = False
    """With `survivors`: trained on every rung, whatever its loss, as a control is."""
    tune: dict[str, list[Any]] = Field(default_factory=dict)
    """Fields of the method and the values to try: each combination is a trial on dev, with the first seed, and the best
    one a data set is used there. Every tuned method must have the same number of trials."""

    @model_validator(mode="after")
    def _is_called(self) -> MethodSpec:
        if self.name not in METHODS:
            raise ValueError(f"no method is called {shown(self.name)}; there are {', '.join(METHODS)}")
        if self.count_trials() > MOST_CELLS:
            raise ValueError(f"tune: {self.count_trials():,} combinations; {MOST_CELLS:,} are the most")
        if not self.label:
            preset = (self.model_extra or {}).get("preset")
            self.label = f"{self.name} ({preset})" if preset else self.name
        return self

    def count_trials(self) -> int:
        return math.prod(len(values) for values in self.tune.values())

    def trials(self) -> list[dict[str, Any]]:
        """Every combination of the values to try."""
        names = list(self.tune)
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*self.tune.values())]


class DataSpec(Section):
    """A data set, or a mixture of several, with what a run needs for it alone."""

    dataset: str | None = None
    """Name of a data set, as in a run's data.dataset."""
    path: PathText | None = None
    """Its folder, file or hub id."""
    columns: Columns | None = None
    """Data of your own: which columns hold what, as in a run's data.columns."""
    instructions_file: PathText | None = None
    """Data of your own: their instructions, as in a run's data.instructions_file."""
    mix: list[MixItem] = Field(default_factory=list)
    """Several data sets in one run, in place of dataset and path."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the run's configuration for this data set, such as {train.epochs: 30}."""

    @property
    def name(self) -> str:
        return self.dataset or "+".join(item.dataset for item in self.mix)


class Transfer(Section):
    """Train on one data set with each method, go on with a fraction of another by plain SFT, test there."""

    source: str
    """The data set trained on first, with every method of the grid (its arms)."""
    target: str
    """The data set gone on with, at each of grid.fractions, and tested."""


def _as_method(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


class Grid(Section):
    """The axes, innermost first."""

    methods: list[Annotated[MethodSpec, BeforeValidator(_as_method)]] = Field(min_length=1)
    """Names of methods, or {name: ..., and fields of a run's `method`}. Beside them: `label`, what tables call it;
    `set: {train.lr: 3e-4}`, other fields of the run; `epochs_factor: 2`, twice a data set's epochs;
    `tune: {alpha: [0.02, 0.05]}`, values to try on dev, of which each data set gets the best; `stays: true`, see
    survivors."""
    noises: list[NoiseKind | Literal["auto"]] = Field(["auto"], min_length=1)
    """Noises of the training instructions. `auto` is what a run without noise.kind has: none for sft, and for anit with
    the preset ours; replacement for the others."""
    omegas: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.2], min_length=1)
    """Noise levels."""
    instructions: list[Literal["concise", "detailed"]] = Field(["detailed"], min_length=1)
    """Versions of the instructions."""
    distortions: list[Literal["rbe", "lme"]] = Field(["rbe"], min_length=1)
    """Measures of the distortion."""
    datasets: list[DataSpec] = Field(min_length=1)
    """{dataset: ..., path: ...}, or {mix: [...]} for several in one run; `set: {...}` as with methods."""
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Shares of the training split; with transfers, of the target's."""
    sizes: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Numbers of training examples, in place of data.max_train; the report draws the scores against them."""
    models: list[PathText] = Field(default_factory=list)
    """Models in place of base.model.name_or_path."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([42], min_length=1)
    """Seeds. Three alone prove nothing."""


EXAMPLE: dict[str, Any] = {
    "title": "Does an attack pay beside noisy instructions?",
    "base": {
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "train": {"epochs": 3, "global_batch": 16, "micro_batch": 4, "lr": 1e-3},
        "eval": {"noises": ["shuffle", "replacement"]},
    },
    "grid": {
        "methods": [
            "sft",
            "noisy_sft",
            {"name": "anit", "preset": "ours", "tune": {"alpha": [0.02, 0.05]}},
            {"name": "pgd", "label": "pgd-3", "eps": 0.3, "eps_unit": "relative", "tune": {"alpha": [0.03, 0.1]}},
        ],
        "noises": ["replacement"],
        "datasets": [
            {"dataset": "sst2", "path": "data/sst2"},
            {"dataset": "14lap", "path": "data/14lap", "set": {"train.epochs": 10}},
        ],
        "seeds": [1, 2, 3, 4, 5],
    },
    "out": "results/does-an-attack-pay",
}  # fmt: skip
"""What `anit compare --init` starts from."""


class CompareConfig(Section):
    """A comparison. See `grid` for its axes."""

    title: str
    """Heading of the report."""
    base: dict[str, Any]
    """A run's configuration without what the grid decides; or a YAML file with it, named from this file's folder."""
    grid: Grid
    """The axes that its cells span."""
    transfers: list[Transfer] = Field(default_factory=list)
    """Few-shot transfers between data sets of the grid, {source: ..., target: ...}, in place of the plain grid."""
    survivors: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Successive halving: how many arms are trained on the first rung, the second and so on, the last number on all
    others; the best by dev NLL go on. A rung is one data set with one seed, the data sets of the first seed first. By
    default every arm is trained everywhere."""
    show: list[Shown] = Field(["methods"])
    """Tables and figures of the report: the paper's by their numbers, `methods` (all against all data sets), and
    `screen` (many settings on dev, no test split read). `robustness` is shown wherever it was computed."""
    jobs: int = Field(1, ge=1)
    """Cells trained at once, each on a GPU of its own where there are several."""
    launcher: str | None = None
    """A launcher before each cell's `anit train`, such as `launch/local.sh --ranks 8`."""
    out: PathText
    """The comparison's folder."""

    @field_validator("base")
    @classmethod
    def _without_empty_sections(cls, base: dict[str, Any]) -> dict[str, Any]:
        return {name: section for name, section in base.items() if section is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> CompareConfig:
        names = [spec.name for spec in self.grid.datasets]
        for transfer in self.transfers:
            for name in (transfer.source, transfer.target):
                if name not in names:
                    raise ValueError(f"transfers: {name!r} is no data set of grid.datasets ({', '.join(names)})")
        for field in _DECIDED:
            section, _, key = field.partition(".")
            inside = self.base.get(section)
            if inside is not None and (not key or (isinstance(inside, dict) and key in inside)):
                raise ValueError(f"base.{field}: the grid decides it; remove it from base")
        for section in ("data", "noise", "distortion"):
            if not isinstance(self.base.get(section, {}), dict):
                raise ValueError(f"base.{section}: a section, not {shown(self.base[section])}")
        size = math.prod(len(axis) for _, axis in self.grid if isinstance(axis, list) and axis)
        if size > MOST_CELLS:
            raise ValueError(f"grid: its axes span {size:,} cells; {MOST_CELLS:,} are the most")
        if self.grid.sizes:
            self._sizes_are_free()
        racing = sum(not spec.stays for spec in self.grid.methods)
        if self.survivors and self.survivors[0] < racing:
            raise ValueError(
                f"survivors: the first rung has {self.survivors[0]} places for {racing} arms, and nothing is known yet "
                "to choose them by; begin with all of them"
            )
        if self.survivors != sorted(self.survivors, reverse=True):
            raise ValueError(f"survivors: {self.survivors} grows; no arm comes back, so write no number above the last")
        for axis in ("models", "omegas", "instructions", "distortions"):
            if self.transfers and len(getattr(self.grid, axis)) > 1:
                raise ValueError(f"grid.{axis}: table 4 has no column for it; with transfers give one value")
        if self.survivors and self.transfers:
            raise ValueError("survivors: a transfer's cells depend on each other; leave one of the two out")
        labels = [spec.label for spec in self.grid.methods]
        _refuse_twice("methods", labels, "give each a label of its own")
        _refuse_twice("datasets", names, "results are told apart by the name of their set")
        trials = {spec.label: spec.count_trials() for spec in self.grid.methods if spec.tune}
        if len(set(trials.values())) > 1:
            told = ", ".join(f"{label} {count}" for label, count in trials.items())
            raise ValueError(f"grid.methods: tuned methods need equally many trials, but they have {told}")
        return self

    def _sizes_are_free(self) -> None:
        if self.transfers:
            raise ValueError("grid.sizes: a transfer's axis is grid.fractions; leave one of the two out")
        fields = [f"base.data.{field}" for field in self.base.get("data", {})]
        for settings in [spec.set for spec in self.grid.datasets] + [spec.set for spec in self.grid.methods]:
            fields += [f"set: {field}" for field in settings]
        if twice := [field for field in fields if field.endswith("data.max_train")]:
            raise ValueError(f"{twice[0]}: grid.sizes decides it; leave one of the two out")


def _refuse_twice(axis: str, names: list[str], why: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"grid.{axis}: {shown(twice[0])} stands there twice; {why}")


def example_yaml() -> str:
    """A comparison that runs, with every field, its meaning and its default."""
    filled = CompareConfig.model_validate(EXAMPLE).model_dump(mode="json")
    grid = {**filled["grid"], "methods": EXAMPLE["grid"]["methods"], "datasets": EXAMPLE["grid"]["datasets"]}
    return annotated(CompareConfig, {**filled, "grid": grid})
