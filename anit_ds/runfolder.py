"""A run's folder: where everything is, and that it belongs to this configuration.

config.yaml   run.json   data/   metrics.jsonl   tensorboard/   trackers.json   checkpoints/   eval/
adapter/ or model/   summary.json   requeue   log-rank0.txt   launch/
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anit_ds.config import Config, LoraConfig
from anit_ds.configfile import load_config
from anit_ds.errors import InputError
from anit_ds.files import write_atomically
from anit_ds.identity import configuration_hash, differ_in_length, differences, with_absolute_paths
from anit_ds.leftovers import sweep
from anit_ds.sealed import Damaged, read_sealed, write_sealed

# What `--fresh` and the demo may delete: our own names only, whatever else lies in the folder. Logs stay.
_OURS = (
    "config.yaml", "run.json", "data", "metrics.jsonl", "tensorboard", "trackers.json", "checkpoints", "adapter",
    "model", "eval", "summary.json", "requeue",
)  # fmt: skip
_VERSIONED = ("anit-ds", "torch", "deepspeed", "transformers", "peft", "triton", "datasets", "rapidfuzz")


class RunFolder:
    """The paths of a run. Creating one touches nothing; `begin` does."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.record = self.path / "run.json"
        self.data = self.path / "data"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers.json"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.eval = self.path / "eval"
        self.summary = self.path / "summary.json"
        self.requeue = self.path / "requeue"
        self._replaced = self.path / ".replaced"  # what --fresh has set aside

    def best(self, config: Config) -> Path:
        """The folder of the best weights: the adapter, or the whole model where that is trained."""
        return self.model if config.lora is None else self.adapter

    def begin(self, config: Config, *, fresh: bool = False) -> Config:
        """Make the folder and write the resolved configuration into it; returns that, its local paths absolute.

        One that asks for another length of the run that is here is not written yet: `note` does, once it is accepted.
        `fresh` sets what an earlier run left aside first, until `accept`; inside `kept_until_accepted` it comes back
        by itself. Raises InputError when the folder cannot be written, or holds a run of another configuration.
        """
        self._put_back()  # that of a start that was killed
        if fresh:
            self._set_aside()
        config = with_absolute_paths(config)
        if self.has_results():
            self._refuse_another(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.of_another_length(config) is None:
                self._write_config(config)
            sweep(self.path)
        except OSError as error:
            raise InputError(f"out: cannot write into {self.path} ({error.strerror})") from error
        return config

    def _write_config(self, config: Config) -> None:
        write_atomically(self.config, config.model_copy(update={"versions": versions()}).to_yaml())

    def of_another_length(self, config: Config) -> Config | None:
        """What the run here was last asked for, where it differs from `config` in its length alone."""
        if not self.has_results() or not self.config.is_file():
            return None
        try:
            there = with_absolute_paths(load_config(self.config))
        except InputError:
            return None
        return there if differ_in_length(there, config) else None

    def lora_of(self, config: Config) -> LoraConfig | None:
        """What config.yaml says of the adapter that the run went on from, where `config` names the same one and gives
        it no other fields."""
        try:
            there = with_absolute_paths(load_config(self.config)).lora
        except InputError:
            return None
        here = with_absolute_paths(config).lora
        if there is None or here is None or not here.init_from:
            return None
        given = here.model_fields_set
        return there if there.model_dump(include=given) == here.model_dump(include=given) else None

    def _refuse_another(self, config: Config) -> None:
        """The configuration that the run began with decides; config.yaml says where the other one differs."""
        begun = self._begun_with()
        same = begun == configuration_hash(config)
        try:
            there = with_absolute_paths(load_config(self.config))
        except InputError:
            if same:
                return  # config.yaml is damaged, and is written anew
            raise
        self._refuse_lost(there, config)
        other = differences(there, config, places=same)
        if other:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise InputError(
                f"{self.path}: holds another configuration ({other[0]}{more}); choose another out=, or empty it "
                "with --fresh"
            )
        if begun not in (None, configuration_hash(config), configuration_hash(there)):
            raise self._edited()

    @staticmethod
    def _refuse_lost(there: Config, config: Config) -> None:
        """Raises InputError for a file that is not found from here any more, which makes no other configuration."""
        for field in ("path", "instructions_file"):
            was, now = getattr(there.data, field), getattr(config.data, field)
            if was and now and was != now and not Path(now).exists() and Path(was).name == Path(now).name:
                raise InputError(f"data.{field}: there is no {now} here; the run in this folder began with {was}")

    def note(
        self, config: Config, *, data: dict[str, str], model: str | None, answer_limits: dict[str, int],
        was: int | None = None,
    ) -> None:  # fmt: skip
        """Write run.json: what a run begins with, for those who go on from it or ask it.

        data: of each data set the hash that it is known by; model: that of the base model. answer_limits: of each data
        set the tokens that an answer may have. was: the steps that it was to make, where it is now asked for another
        length.
        """
        earlier = self.earlier()
        if was is not None and (there := self.of_another_length(config)) is not None:
            self.summary.unlink(missing_ok=True)
            this = {"configuration": configuration_hash(there), "steps": was}
            earlier = [*earlier, this] if this not in earlier else earlier
        content = {
            "configuration": configuration_hash(config), "data": data, "model": model, "answer_limits": answer_limits,
            "earlier": earlier,
        }  # fmt: skip
        write_sealed(self.record, content)
        self._write_config(config)
        self.accept()

    def earlier(self) -> list[dict[str, Any]]:
        """What the run was before it was asked for more: the hash of each configuration, and its steps."""
        try:
            found: list[dict[str, Any]] = self.noted().get("earlier", [])
        except Damaged:
            found = []
        return found

    def configurations(self, config: Config) -> set[str | None]:
        """The hashes that what lies here may bear; an older version gave none."""
        return {None, configuration_hash(config), *(one["configuration"] for one in self.earlier())}

    def noted(self) -> dict[str, Any]:
        """What `note` wrote; empty where a run has not begun, or was begun by an older version. Raises Damaged."""
        return read_sealed(self.record) if self.record.is_file() else {}

    def begun_data(self) -> dict[str, str] | None:
        """`data` of `note` once training has left anything that depends on it, else None; empty where nobody knows."""
        if not self._has_trained():
            return None
        try:
            known: dict[str, str] = self.noted().get("data", {})
        except Damaged:
            known = {}
        return known

    def begun_model(self) -> str | None:
        """`model` of `note` once training has left anything that depends on it; None where nobody knows."""
        try:
            return self.noted().get("model") if self._has_trained() else None
        except Damaged:
            return None

    def _has_trained(self) -> bool:
        return any(path.exists() for path in (self.metrics, self.checkpoints, self.summary))

    def _begun_with(self) -> str | None:
        try:
            return self.noted().get("configuration")
        except Damaged:
            return None

    def _edited(self) -> InputError:
        return InputError(
            f"{self.config}: damaged or edited, it is not the configuration that the run began with; put back what it "
            "was, or begin anew with --fresh"
        )

    def has_results(self) -> bool:
        """Whether there is anything to lose here: a start that failed before its data were built leaves nothing."""
        built = [self.metrics, self.checkpoints, self.summary, *self.data.glob("**/manifest.json")]
        return any(path.exists() for path in built)

    @contextmanager
    def kept_until_accepted(self) -> Iterator[None]:
        """Inside, a new run that is refused before `accept` costs the earlier one nothing."""
        try:
            yield
        finally:
            self._put_back()

    def accept(self) -> None:
        """The new run stands: what it replaces is deleted. A kill leaves all of it to put back, or none."""
        if self._replaced.is_dir():
            gone = self._replaced.with_name(f"{self._replaced.name}.gone")
            self._replaced.rename(gone)
            shutil.rmtree(gone)

    def _set_aside(self) -> None:
        there = [path for name in _OURS if (path := self.path / name).exists()]
        if there:
            self._replaced.mkdir()
        for path in there:
            path.rename(self._replaced / path.name)

    def _put_back(self) -> None:
        if not self._replaced.is_dir():
            return
        for path in sorted(self._replaced.iterdir()):
            _remove(self.path / path.name)
            path.rename(self.path / path.name)
        self._replaced.rmdir()

    def load_config(self) -> Config:
        """The configuration of a run that exists. Raises InputError when there is none here, or not the run's own."""
        if not self.config.is_file():
            raise InputError(f"{self.path}: no run here (config.yaml is missing)")
        config = load_config(self.config)
        if self.noted().get("configuration") not in (None, configuration_hash(config)):
            raise self._edited()
        return config


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Installed versions of the packages that move numbers."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def log_to(folder: Path, rank: int) -> None:
    """Send the loggers `anit_ds` and `anit_kernels` to one file per rank, and on rank 0 to the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(folder / f"log-rank{rank}.txt", encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if rank == 0:
        handlers.append(logging.StreamHandler())
    for name in ("anit_ds", "anit_kernels"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        for old in list(logger.handlers):  # a second run in this process has a folder of its own
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
