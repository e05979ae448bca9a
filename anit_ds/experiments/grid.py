"""The YAML of `anit compare`, and the cells that its axes span: each cell is one run's configuration.

    base:  {...}                       a run's configuration without what the grid decides
    grid:  {methods: [...], noises: [...], datasets: [...], seeds: [...], ...}

Seeds are the outermost axis, so a grid that stops half-way is already a comparison on its first seeds. What a method
does not feel (sft its noise, fgsm the distortion measure) does not multiply its cells.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from anit_ds.adversarial.rules import METHODS
from anit_ds.config import Config, MixItem, NoiseKind, Section, identity
from anit_ds.configfile import load_yaml, set_field, validate
from anit_ds.errors import InputError

Shown = Literal[
    "methods", "table1", "table2", "table3", "table4", "figure2a", "figure2b", "figure2c", "robustness"
]  # fmt: skip
# What the grid decides for every cell: a value in `base` would be overwritten without a word.
_DECIDED = ("data.dataset", "data.path", "data.mix", "data.fraction", "data.instructions", "noise.kind", "noise.omega",
            "distortion.kind", "method", "train.seed", "out")  # fmt: skip


class MethodSpec(BaseModel):
    """A method of the comparison: a name, or a name with fields of a run's `method` section."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    name: str
    """One of the methods of a run's `method.name`."""
    label: str = ""
    """What tables call it; by default its name, and its preset where one is given."""
    tune: dict[str, list[Any]] = Field(default_factory=dict)
    """Fields of the method and the values to try: each combination is a trial on dev, with the first seed, and the best
    one a data set is used there. Every tuned method must have the same number of trials."""

    @model_validator(mode="after")
    def _is_called(self) -> MethodSpec:
        if self.name not in METHODS:
            raise ValueError(f"no method is called {self.name!r}; there are {', '.join(METHODS)}")
        if not self.label:
            preset = (self.model_extra or {}).get("preset")
            self.label = f"{self.name} ({preset})" if preset else self.name
        return self

    def trials(self) -> list[dict[str, Any]]:
        """Every combination of the values to try."""
        names = list(self.tune)
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*self.tune.values())]


class DataSpec(Section):
    """A data set, or a mixture of several, with what a run needs for it alone."""

    dataset: str | None = None
    """Name of a data set, as in a run's data.dataset."""
    path: str | None = None
    """Its folder, file or hub id."""
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
    """Names of methods, or {name: ..., label: ..., and fields of the method}."""
    noises: list[NoiseKind] = Field(["replacement"], min_length=1)
    """Noises of the training instructions."""
    omegas: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.2], min_length=1)
    """Noise levels."""
    instructions: list[Literal["concise", "detailed"]] = Field(["detailed"], min_length=1)
    """Versions of the instructions."""
    distortions: list[Literal["rbe", "lme"]] = Field(["rbe"], min_length=1)
    """Measures of the distortion."""
    datasets: list[DataSpec] = Field(min_length=1)
    """Data sets and mixtures."""
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Shares of the training split; with transfers, of the target's."""
    models: list[str] = Field(default_factory=list)
    """Models in place of base.model.name_or_path."""
    seeds: list[int] = Field([42], min_length=1)
    """Seeds. Three alone prove nothing."""


class CompareConfig(Section):
    """A comparison. See `grid` for its axes."""

    title: str
    """Heading of the report."""
    base: dict[str, Any]
    """A run's configuration without what the grid decides; or a YAML file with it, named from this file's folder."""
    grid: Grid
    transfers: list[Transfer] = Field(default_factory=list)
    """Few-shot transfers between data sets of the grid, in place of the plain grid."""
    show: list[Shown] = Field(["methods"])
    """Tables and figures of the report: the paper's by their numbers, `methods` (all against all data sets) and
    `robustness`."""
    jobs: int = Field(1, ge=1)
    """Cells trained at once, each on a GPU of its own where there are several."""
    launcher: str | None = None
    """A launcher before each cell's `anit train`, such as `launch/local.sh --ranks 8`."""
    out: str
    """The comparison's folder."""

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
        trials = {spec.label: len(spec.trials()) for spec in self.grid.methods if spec.tune}
        if len(set(trials.values())) > 1:
            told = ", ".join(f"{label} {count}" for label, count in trials.items())
            raise ValueError(f"grid.methods: tuned methods need equally many trials, but they have {told}")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of the grid: where it stands on each axis, and its configuration.

    `arm` is the label of the method that a table's row is about: the cell's own, or in a transfer the one that the
    source was trained with. `source` is the cell that must be trained first.
    """

    config: Config
    dataset: str
    arm: str
    name: str
    hash: str
    source: Cell | None = None

    def axes(self) -> dict[str, Any]:
        """The cell's place in the grid, as results.json has it."""
        config = self.config
        return {
            "dataset": self.dataset,
            "method": config.method.name,
            "arm": self.arm,
            "preset": config.method.preset if config.method.name == "anit" else None,
            "model": config.model.name_or_path,
            "distortion": config.distortion.kind,
            "instructions": config.data.instructions,
            "noise": config.noise.kind,
            "omega": config.noise.omega,
            "phi": config.noise.phi,
            "fraction": config.data.fraction,
            "transfer_from": self.source.dataset if self.source else None,
            "seed": config.train.seed,
        }


Chosen = Mapping[tuple[str, str], dict[str, Any]]
"""(method's label, data set) -> the settings that its trials chose."""


def load_compare_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> CompareConfig:
    """Read and validate the YAML of a comparison, every cell's configuration included.

    Raises InputError for anything wrong in it, with the file, the line and the field.
    """
    config = load_yaml(path, overrides, CompareConfig, _read_base)
    for _ in (*tuning_cells(config), *cells(config)):
        pass
    return config


def _read_base(raw: dict[str, Any], path: Path) -> None:
    """Put the content of the file that `base` names in its place."""
    if not isinstance(raw.get("base"), str):
        return
    file = path.parent / raw["base"]
    try:
        raw["base"] = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: base: cannot read {file} ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML ({getattr(error, 'problem', error)})") from error


def cells(config: CompareConfig, chosen: Chosen | None = None) -> list[Cell]:
    """The grid's cells in the order in which they are trained, each once; a source stands before what it serves."""
    found: dict[str, Cell] = {}
    for cell in _transfer_cells(config, chosen or {}) if config.transfers else _grid_cells(config, chosen or {}):
        found.setdefault(cell.hash, cell)
    return list(found.values())


def tuning_cells(config: CompareConfig) -> list[tuple[tuple[str, str], dict[str, Any], Cell]]:
    """((label, data set), settings tried, the trial's cell): scored on dev alone, first value of every other axis."""
    first = next(_places(config))
    trials = []
    for data, spec in itertools.product(config.grid.datasets, config.grid.methods):
        place = replace(first, data=data, fraction=1.0)
        for settings in spec.trials() if spec.tune else []:
            cell = _cell(config, place, spec, {**settings, "eval.test": False})
            trials.append(((spec.label, data.name), settings, cell))
    return trials


@dataclass(frozen=True)
class _Place:
    """A point of the grid, without its method."""

    seed: int
    model: str | None
    fraction: float
    data: DataSpec
    distortion: str
    version: str
    omega: float
    noise: str


def _places(config: CompareConfig, datasets: Sequence[DataSpec] | None = None) -> Iterator[_Place]:
    grid = config.grid
    models: list[str | None] = [*grid.models] or [None]
    axes = itertools.product(
        grid.seeds, models, grid.fractions, datasets or grid.datasets, grid.distortions,
        grid.instructions, grid.omegas, grid.noises,
    )  # fmt: skip
    return itertools.starmap(_Place, axes)


def _grid_cells(config: CompareConfig, chosen: Chosen) -> Iterator[Cell]:
    for place, spec in itertools.product(_places(config), config.grid.methods):
        yield _cell(config, place, spec, chosen.get((spec.label, place.data.name), {}))


def _transfer_cells(config: CompareConfig, chosen: Chosen) -> Iterator[Cell]:
    by_name = {spec.name: spec for spec in config.grid.datasets}
    plain = MethodSpec(name="sft")
    for place, transfer, arm in itertools.product(
        _places(config, config.grid.datasets[:1]), config.transfers, config.grid.methods
    ):
        first = replace(place, data=by_name[transfer.source], fraction=1.0)
        source = _cell(config, first, arm, chosen.get((arm.label, transfer.source), {}))
        yield source
        then = replace(place, data=by_name[transfer.target])
        several = len(config.grid.noises) > 1 and source.config.noise.kind != "none"
        label = f"{arm.label}, {place.noise}" if several else arm.label
        yield _cell(config, then, plain, {}, source=source, arm=label)


def _cell(
    config: CompareConfig,
    place: _Place,
    spec: MethodSpec,
    settings: Mapping[str, Any],
    *,
    source: Cell | None = None,
    arm: str = "",
) -> Cell:
    data, method = place.data, spec.name
    noise = "none" if method == "sft" else place.noise
    feels_beta = noise != "none" and "beta_scope" in METHODS[method].reads
    raw = copy.deepcopy(config.base)
    where = {"mix": [m.model_dump() for m in data.mix]} if data.mix else {"dataset": data.dataset, "path": data.path}
    raw["data"] = {**raw.get("data", {}), **where, "instructions": place.version, "fraction": place.fraction}
    raw["noise"] = {**raw.get("noise", {}), "kind": noise, "omega": place.omega}
    if noise == "none":
        raw["noise"] |= {"omega": 0.0, "phi": 0.0}
    elif noise == "opposite":
        raw["noise"]["omega"] = config.grid.omegas[0]  # it has no effect there
    raw["distortion"] = {**raw.get("distortion", {}), "kind": place.distortion if feels_beta else "rbe"}
    raw["method"] = {"name": method, **(spec.model_extra or {})}
    raw["out"] = config.out
    set_field(raw, "train.seed", place.seed)
    if place.model:
        set_field(raw, "model.name_or_path", place.model)
    if source is not None:
        set_field(raw, "lora.init_from", source.config.out)
    for field, value in {**data.set, **settings}.items():
        set_field(raw, field if "." in field else f"method.{field}", value)
    run = validate(raw, source=f"cell {data.name}, {spec.label}")
    if run.method.beta is not None:
        run.distortion.kind = "rbe"  # a fixed beta is not measured
    digest = _hash(run, source)
    from_ = [f"from-{source.dataset}"] if source else []
    parts = [data.name, arm or spec.label, *from_, noise, f"s{place.seed}", digest[:8]]
    name = "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts)
    run.out = str(Path(config.out) / "runs" / name)
    return Cell(run, data.name, arm or spec.label, name, digest, source)


def _hash(run: Config, source: Cell | None) -> str:
    """Over everything that moves the result. A source is named by its own hash, so that a folder can be moved."""
    fields = {**identity(run), "lora.init_from": source.hash if source else run.lora.init_from}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
