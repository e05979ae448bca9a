"""The cells that a comparison's axes span: each cell is one run's configuration.

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
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from anit_ds.adversarial.rules import METHODS, raw_unless_told
from anit_ds.config import Config, NoiseConfig, TrainConfig
from anit_ds.configfile import load_yaml, set_field, validate
from anit_ds.errors import InputError
from anit_ds.experiments.grid import CompareConfig, DataSpec, MethodSpec
from anit_ds.files import expanded_path
from anit_ds.identity import chosen as chosen_fields
from anit_ds.yamlfile import read_yaml


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

    @property
    def chosen_by(self) -> tuple[str, str]:
        """The trials whose choice it was trained with, or goes on from: (method's label, data set)."""
        tuned = self.source or self
        return tuned.arm, tuned.dataset

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
            "max_train": config.data.max_train,
            "transfer_from": self.source.dataset if self.source else None,
            "seed": config.train.seed,
        }


class Trial(NamedTuple):
    """Settings that are tried for a tuned method on a data set, scored on dev alone."""

    key: tuple[str, str]
    """(method's label, data set)"""
    settings: dict[str, Any]
    cell: Cell


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
    try:
        file = path.parent / expanded_path(raw["base"])
    except ValueError as error:
        raise InputError(f"{path}: base: {error}") from error
    raw["base"] = read_yaml(file, "the configuration that base names").value


def cells(config: CompareConfig, chosen: Chosen | None = None) -> list[Cell]:
    """The grid's cells in the order in which they are trained, each once; a source stands before what it serves."""
    found: dict[str, Cell] = {}  # by name, which has the arm and the hash
    for cell in _transfer_cells(config, chosen or {}) if config.transfers else _grid_cells(config, chosen or {}):
        found.setdefault(cell.name, cell)
    return list(found.values())


def tuning_cells(config: CompareConfig) -> list[Trial]:
    """The trials of every tuned method on every data set, with the first value of every other axis."""
    first = next(_places(config))
    trials = []
    for data, spec in itertools.product(config.grid.datasets, config.grid.methods):
        place = replace(first, data=data, fraction=1.0 if config.transfers else first.fraction)
        for settings in spec.trials() if spec.tune else []:
            cell = _cell(config, place, spec, {**settings, "eval.test": False})
            trials.append(Trial((spec.label, data.name), settings, cell))
    return trials


@dataclass(frozen=True)
class _Place:
    """A point of the grid, without its method."""

    seed: int
    model: str | None
    fraction: float
    size: int | None
    data: DataSpec
    distortion: str
    version: str
    omega: float
    noise: str


def _places(config: CompareConfig, datasets: Sequence[DataSpec] | None = None) -> Iterator[_Place]:
    grid = config.grid
    models: list[str | None] = [*grid.models] or [None]
    sizes: list[int | None] = [*grid.sizes] or [None]
    axes = itertools.product(
        grid.seeds, models, grid.fractions, sizes, datasets or grid.datasets, grid.distortions,
        grid.instructions, grid.omegas, grid.noises,
    )  # fmt: skip
    return itertools.starmap(_Place, axes)


def _settings(spec: MethodSpec, dataset: str, chosen: Chosen) -> dict[str, Any]:
    """What trials chose; the first of them until they have: a method may have no sound setting but those it tries."""
    return chosen.get((spec.label, dataset)) or (spec.trials()[0] if spec.tune else {})


def _grid_cells(config: CompareConfig, chosen: Chosen) -> Iterator[Cell]:
    for place, spec in itertools.product(_places(config), config.grid.methods):
        yield _cell(config, place, spec, _settings(spec, place.data.name, chosen))


def _transfer_cells(config: CompareConfig, chosen: Chosen) -> Iterator[Cell]:
    by_name = {spec.name: spec for spec in config.grid.datasets}
    plain = MethodSpec(name="sft")
    for place, transfer, arm in itertools.product(
        _places(config, config.grid.datasets[:1]), config.transfers, config.grid.methods
    ):
        first = replace(place, data=by_name[transfer.source], fraction=1.0)
        source = _cell(config, first, arm, _settings(arm, transfer.source, chosen))
        yield source
        then = replace(place, data=by_name[transfer.target])
        several = len(config.grid.noises) > 1 and source.config.noise.kind != "none"
        label = f"{arm.label}, {source.config.noise.kind}" if several else arm.label
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
    changed = {
        field if "." in field else f"method.{field}": value
        for field, value in {**place.data.set, **spec.set, **settings}.items()
    }
    noise = _noise_of(place, spec, changed)
    raw_only = spec.name == "sft" or changed.get("noise.kind", noise) == "none"
    if raw_only and (idle := _noise_fields({**spec.set, **settings})):
        raise InputError(
            f"{spec.label}: {idle[0]} changes nothing, because it trains on raw instructions; set noise.kind too"
        )
    raw = _raw_at(config, place, spec, noise, raw_only=raw_only)
    if source is not None:
        if source.config.lora is None:
            raise InputError("transfers: a run goes on from another one's adapter, and lora: null leaves none")
        set_field(raw, "lora.init_from", source.config.out)
    for field, value in changed.items():
        set_field(raw, field, value)
    if spec.epochs_factor != 1:
        _lengthen(raw, spec)
    _test_under_the_same_noise(raw, config.grid.omegas)
    run = validate(raw, source=f"cell {place.data.name}, {spec.label}")
    if not _feels_distortion(run):
        run.distortion.kind = "rbe"  # one cell for all measures
    digest = _hash(run, source)
    from_ = [f"from-{source.dataset}"] if source else []
    of = [f"n{place.size}"] if place.size else []
    parts = [place.data.name, arm or spec.label, *from_, run.noise.kind, *of, f"s{place.seed}", digest[:8]]
    name = "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts)
    run.out = str(Path(config.out) / "runs" / name)
    return Cell(run, place.data.name, arm or spec.label, name, digest, source)


def _raw_at(config: CompareConfig, place: _Place, spec: MethodSpec, noise: str, *, raw_only: bool) -> dict[str, Any]:
    """`base` with what the place and the method say, before anyone's `set`."""
    raw, data = copy.deepcopy(config.base), place.data
    where: dict[str, Any] = {"dataset": data.dataset, "path": data.path}
    if data.mix:
        where = {"mix": [m.model_dump() for m in data.mix]}
    if data.columns:
        where["columns"] = data.columns.model_dump()
    if data.instructions_file:
        where["instructions_file"] = data.instructions_file
    raw["data"] = {**raw.get("data", {}), **where, "instructions": place.version, "fraction": place.fraction}
    if place.size is not None:
        raw["data"]["max_train"] = place.size
    raw["noise"] = {**raw.get("noise", {}), "kind": noise, "omega": place.omega}
    if noise == "none" and raw_only:
        raw["noise"] |= {"omega": 0.0, "phi": 0.0, "views": 1}
    elif noise == "opposite":
        raw["noise"]["omega"] = config.grid.omegas[0]  # it has no effect there
    raw["distortion"] = {**raw.get("distortion", {}), "kind": place.distortion}
    raw["method"] = {"name": spec.name, **(spec.model_extra or {})}
    raw["out"] = config.out
    set_field(raw, "train.seed", place.seed)
    if place.model:
        set_field(raw, "model.name_or_path", place.model)
    return raw


def _test_under_the_same_noise(raw: dict[str, Any], omegas: Sequence[float]) -> None:
    """Every arm is tested at one level of noise, whatever it was trained on."""
    tests = raw.get("eval", {})
    level = next(filter(None, omegas), raw["noise"]["omega"])
    if tests.get("noises") and raw["noise"]["omega"] != level and tests.get("omega") is None:
        tests["omega"] = level


def _lengthen(raw: dict[str, Any], spec: MethodSpec) -> None:
    train = raw.setdefault("train", {})
    if train.get("max_steps") is not None:
        raise InputError(f"{spec.label}: epochs_factor has no effect where train.max_steps ends a run; leave one out")
    epochs = train.get("epochs", TrainConfig.model_fields["epochs"].default)
    with suppress(TypeError, ValueError):  # what is no number is refused with the whole configuration
        train["epochs"] = float(epochs) * spec.epochs_factor


def _noise_of(place: _Place, spec: MethodSpec, changed: Mapping[str, Any]) -> str:
    """What the grid's axis says of this method, before its own `set`."""
    if spec.name == "sft":
        return "none"
    if place.noise == "auto":
        preset = changed.get("method.preset", (spec.model_extra or {}).get("preset", "ours"))
        return "none" if raw_unless_told(spec.name, preset) else NoiseConfig.model_fields["kind"].default
    return place.noise


def _noise_fields(fields: Mapping[str, Any]) -> list[str]:
    return [field for field in fields if field.startswith("noise.") and field != "noise.kind"]


def _feels_distortion(run: Config) -> bool:
    """Whether beta is measured and sizes a random start."""
    method = run.method
    reads = METHODS[method.name].reads
    starts = "beta_scope" in reads and method.start > 0
    return starts and method.beta is None and run.noise.kind != "none"


def _hash(run: Config, source: Cell | None) -> str:
    """Over what was chosen; what was left at its default is compared when a result is read (records.py).

    A source is named by its own hash, so that a folder can be moved.
    """
    fields = {**chosen_fields(run), "lora.init_from": source.hash if source else run.lora and run.lora.init_from}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
