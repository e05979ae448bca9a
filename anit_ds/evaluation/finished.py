"""A run as its folder has it, finished or not, loaded and asked: its scores on a split, its answers to new texts.

Nothing but the folder and the model is read, and nothing but evaluations is written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from anit_ds.config import Columns
from anit_ds.data.corpora.columns import text_alone
from anit_ds.data.corpora.reading import Broken
from anit_ds.data.examples import Sample
from anit_ds.data.mixture import portions
from anit_ds.data.noise import NoSource
from anit_ds.data.rundata import DataSet, RunData
from anit_ds.data.tasks.classification import CLASSIFICATION
from anit_ds.data.tasks.multilabel import MULTILABEL
from anit_ds.errors import InputError
from anit_ds.evaluation.evaluator import Evaluator
from anit_ds.evaluation.labels import temperatures_of
from anit_ds.evaluation.none_threshold import thresholds_of
from anit_ds.evaluation.report import AnsweredBy, Evaluation, read_evaluation, write_evaluation
from anit_ds.evaluation.robustness import beside_raw
from anit_ds.evaluation.thresholds import FITTED, Thresholds
from anit_ds.identity import configuration_hash
from anit_ds.modeling import (
    base_fingerprint,
    dtype_name,
    load_model,
    load_tokenizer,
    load_trained,
    resolve_dtype,
    weights_about,
)
from anit_ds.ranks import distributed
from anit_ds.runfolder import RunFolder
from anit_ds.sealed import Damaged, read_sealed

logger = logging.getLogger(__name__)

# Most texts that a rank answers before they are given out, in batches: enough to keep a batch full.
_BATCHES = 4
_HALF = re.compile("[\ud800-\udfff]")
# What an answer is told by. A column of the input that has such a name is none.
_TOLD = {"answer", "items", "label", "labels", "none", "probabilities", "scores", "malformed", "cut", "text_cut"}


def _beside(given: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the input with other names for what an answer is told by: `input_label`, and `input_input_label` in
    the output of a prediction that is asked again."""
    names: dict[str, str] = {}
    for key in given:
        name = key
        while name in _TOLD or name in names.values() or (name != key and name in given):
            name = f"input_{name}"
        names[key] = name
    return {names[key]: value for key, value in given.items()}


class Scored(NamedTuple):
    """What came of one evaluation: its name, and None where the noise lacks its source; `remarks` are for a person."""

    name: str
    evaluation: Evaluation | None
    remarks: list[str]


class Asked(NamedTuple):
    """What an object asks: a text of a data set."""

    of: DataSet
    text: str


class FinishedRun:
    """A run's configuration, data and best adapter (with `base` the untouched model); the ranks share the work.

    `dtype` loads the weights in another one than the run's, `max_new_tokens` lets answers be longer or shorter,
    `thresholds` (`LABEL=p`, and for constrained answers `None=p` or `None=dev`) move the choice of a label, or of none,
    by its probability. Raises InputError: no run, a damaged one, a threshold for no label of the run or that no
    evaluation of dev has fitted.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        base: bool = False,
        dtype: str | None = None,
        max_new_tokens: int | None = None,
        thresholds: Sequence[str] = (),
    ) -> None:
        distributed.init()
        self.folder = RunFolder(path)
        self.config = self.folder.load_config()
        self.data = RunData.stored(self.config, self.folder.data)
        self.base, self.dtype, self.max_new_tokens = base, dtype, max_new_tokens
        self.thresholds = Thresholds.read(thresholds, self.data.sets, self._fitted_on_dev)
        self._columns = {portion.dataset: portion.own or Columns() for portion in portions(self.config.data)}

    def _fitted_on_dev(self) -> dict[str, float]:
        found = thresholds_of(self._dev_report(constrained=True))
        if not found:
            cure = self._line_of_dev(constrained=True)
            raise InputError(f"--threshold: {FITTED}: no threshold has been fitted on dev; {cure} does it")
        return found

    def _dev_report(self, *, constrained: bool = False) -> dict[str, Any]:
        """What an evaluation in eval/ says of these weights' dev; empty where there is none. Raises Damaged."""
        file = self.folder.eval / f"{self._name('dev', constrained=constrained)}.json"
        try:
            report = read_sealed(file) if file.is_file() else {}
        except Damaged as error:
            raise Damaged(f"{error}; {self._line_of_dev(constrained)} writes it again") from error
        return report if AnsweredBy.of(report).step == self._step else {}

    def _line_of_dev(self, constrained: bool = False) -> str:
        return f"`anit eval {self.folder.path} --split dev{' --constrained' if constrained else ''}`"

    @cached_property
    def _step(self) -> int | None:
        """The optimizer step of the weights; None where an older version did not say."""
        return 0 if self.base else weights_about(self.folder.best(self.config)).get("step")

    @cached_property
    def _answers(self) -> AnsweredBy:
        dtype = resolve_dtype(self.dtype or self.config.model.dtype, distributed.device().type)
        limits = dict(self.evaluator.answer_limits)
        return AnsweredBy(self._step, dtype_name(dtype), limits, configuration_hash(self.config))

    @property
    def _classified(self) -> list[DataSet]:
        return [s for s in self.data.sets if s.task is CLASSIFICATION]

    @property
    def _has_multilabel(self) -> bool:
        return any(s.task is MULTILABEL for s in self.data.sets)

    @classmethod
    @contextmanager
    def watched(cls, path: str | Path, **how: Any) -> Iterator[FinishedRun]:
        """A FinishedRun whose ranks look after each other for as long as the block lasts, as those of a training do."""
        timeout = RunFolder(path).load_config().train.rank_timeout
        with distributed.watched(timeout) as watchdog, watchdog.working():
            yield cls(path, **how)

    @cached_property
    def model(self) -> nn.Module:
        """On this rank's device, in evaluation mode. Raises InputError: no adapter, a damaged or another's, no
        model."""
        device, best = distributed.device(), self.folder.best(self.config)
        dtype = resolve_dtype(self.dtype or self.config.model.dtype, device.type)
        if self.base:
            return load_model(self.config.model, dtype, device).to(device).eval()
        if weights_about(best).get("configuration") not in self.folder.configurations(self.config):
            raise InputError(f"{best}: is of another configuration than config.yaml's")
        self._doubt_the_base()
        return load_trained(self.config, best, dtype, device).to(device).eval()

    def _doubt_the_base(self) -> None:
        begun = self.folder.begun_model()
        if distributed.rank() == 0 and begun and (base := base_fingerprint(self.config.model)) and base != begun:
            logger.warning(
                "%s is not the model that this run was trained on: its answers are others",
                self.config.model.name_or_path,
            )

    @cached_property
    def evaluator(self) -> Evaluator:
        limits = self.folder.noted().get("answer_limits")
        if self.max_new_tokens:
            limits = {s.name: self.max_new_tokens for s in self.data.sets}
        evaluator = Evaluator(self.config, self.data, load_tokenizer(self.config.model), limits)
        evaluator.thresholds, evaluator.none_thresholds = self.thresholds.labels, self.thresholds.none
        return evaluator

    def _calibrate(self, dev: Evaluation | None = None) -> None:
        """Give labels the temperature found on dev, by default as an evaluation in eval/ has it, if there is one.

        Raises Damaged.
        """
        if self._classified and (report := dev.report if dev else self._dev_report()):
            self.evaluator.temperatures = temperatures_of(report)

    def uncalibrated(self) -> str | None:
        """What to know of labels' probabilities where dev has found no temperature for them."""
        labels = [self.evaluator.labels(s) for s in self._classified]
        if all(of is None or of.temperature is not None or not of.are_few for of in labels):
            return None
        return f"the probabilities are not calibrated; {self._line_of_dev()} does it"

    def evaluate(
        self,
        split: str,
        noises: Sequence[str] = ("none",),
        *,
        constrained: bool = False,
        output: Path | None = None,
    ) -> Iterator[Scored]:
        """Score a split (dev or test) under each noise, write NAME.json into the run's eval/ or `output`, and yield it;
        with `constrained` the answers that are valid by construction.

        Where the raw answers are at hand (from this call or an earlier one), a noise's report has its gap and
        consistency too. One of several noises may lack what it draws from; alone it raises InputError.
        """
        if constrained:
            self.constrains()
        if split == "dev" and self.thresholds.fitted:
            raise InputError(f"--threshold: {FITTED} is what --constrained fits on dev; leave it out")
        folder = output or self.folder.eval
        raw: Evaluation | None = None
        for noise in noises:
            name, remarks = self._name(split, noise, constrained), []
            if split != "dev" or noise != "none":
                self._calibrate(raw if split == "dev" else None)
            try:
                evaluation = self.evaluator.evaluate(
                    self.model, split, noise=noise, constrained=constrained, progress=True
                )
            except NoSource as error:
                if len(noises) == 1:
                    raise
                yield Scored(name, None, [f"not scored: {error}"])
                continue
            if noise == "none":
                raw = evaluation
            else:
                try:
                    raw = raw or self._raw_in(folder, self._name(split, constrained=constrained))
                    evaluation = beside_raw(evaluation, raw) if raw else evaluation
                except (Damaged, ValueError) as error:
                    remarks.append(f"no gap and no share of equal answers: {error}")
            try:
                write_evaluation(folder, name, evaluation, self._answers)
                remarks.append(f"written to {folder / name}.json and predictions-{name}.jsonl beside it")
            except InputError as error:
                remarks.append(f"not written: {error}; --output DIR writes it elsewhere")
            yield Scored(name, evaluation, remarks)

    def _raw_in(self, folder: Path, name: str) -> Evaluation | None:
        """Earlier answers to raw instructions, None where there are none. Raises ValueError for another model's."""
        raw = read_evaluation(folder, name)
        if not raw:
            return None
        theirs, own = AnsweredBy.of(raw.report), self._answers
        if folder == self.folder.eval:  # where no other run writes, and a longer one goes on
            own = own._replace(configuration=theirs.configuration)
        if theirs != own:
            raise ValueError(f"{folder / name}.json is of {theirs}, and this of {own}")
        return raw

    def _name(self, split: str, noise: str = "none", constrained: bool = False) -> str:
        parts = {"base": self.base, split: True, noise: noise != "none", "constrained": constrained}
        return "-".join(part for part, told in parts.items() if told)

    def answer(self, texts: Iterable[tuple[str, dict[str, Any]]], **how: Any) -> Iterator[list[dict[str, Any]]]:
        """Each object (where it stands, and it) again, with what `Evaluator.answer` says of its text, asked as `how`
        says. What it has under a name of ours, such as a gold `label`, is called `input_label`.

        As they are done, in the objects' order: first one batch of each rank, then twice as many, up to a few. Rank 0
        alone reads `texts`. Raises InputError at once for what is wrong with the run or asked in vain, and on the way
        for what `check` refuses.
        """
        how["constrained"] = self.constrains(how.get("constrained", False))
        if how.get("probabilities"):
            self.refuse_probabilities()
        if how.get("probabilities") is not False:
            self._calibrate()
        self.model  # noqa: B018 (loaded)
        return self._answered(texts, how)

    def _answered(
        self, texts: Iterable[tuple[str, dict[str, Any]]], how: dict[str, Any]
    ) -> Iterator[list[dict[str, Any]]]:
        source = iter(texts)
        batch = self.config.eval.batch_size * distributed.world_size()
        sizes = (batch * min(2**turn, _BATCHES) for turn in count())
        number = 0
        while chunk := distributed.from_main(lambda: list(islice(source, next(sizes)))):
            samples: dict[str, list[tuple[int, Sample]]] = {}
            for place, (where, row) in enumerate(chunk):
                of, text = self.check(row, where)
                number += 1
                samples.setdefault(of.name, []).append((place, of.asked(text, str(number))))
            answered: dict[int, dict[str, Any]] = {}
            for name, asked in samples.items():
                told = self.evaluator.answer(self.model, self.data[name], [s for _, s in asked], **how)
                for (place, _), row in zip(asked, told, strict=True):
                    answered[place] = {**_beside(chunk[place][1]), **row}
            yield [answered[place] for place in range(len(chunk))]

    def tokens_of(self, row: Mapping[str, Any]) -> tuple[int, list[int]]:
        """Of an answered object the prompt's tokens, and where in the answer each of its own ends."""
        of, text = self.check(row, "an answer")
        (prompt,) = self.evaluator.encoder.encode_prompts([of.asked(text)])
        answer = self.evaluator.tokenizer(row["answer"], add_special_tokens=False, return_offsets_mapping=True)
        return len(prompt), [end for _, end in answer["offset_mapping"]]

    def constrains(self, asked: bool = True) -> bool:
        """Whether answers are valid by construction: where that is asked for, or a threshold of `None` needs it.

        Raises InputError where no data set's can be.
        """
        constrained = asked or bool(self.thresholds.none)
        if constrained and all(s.task is CLASSIFICATION for s in self.data.sets):
            raise InputError(
                "--constrained: is for tasks with spans or several labels; one label has its probability anyway"
            )
        return constrained

    def refuse_probabilities(self) -> None:
        """Raises InputError where labels' probabilities are asked for and no data set has one label a text."""
        if not self._classified:
            cure = "; --constrained gives each label a score" if self._has_multilabel else ""
            raise InputError(f"--probabilities: are of classification, one label for each text{cure}")

    def check(self, row: Mapping[str, Any], where: str) -> Asked:
        """What an object asks. Its text is in the columns that training read it from, or in `text`.

        Raises InputError for one without a text, and in a mixture for one that does not say its data set.
        """
        of = self.data_set_of(row, where)
        try:
            text = text_alone(row, self._columns[of.name])
        except Broken as error:
            raise InputError(f"{where}: {error}") from error
        if half := _HALF.search(text):
            raise InputError(f"{where}: {half[0]!r} is half a character (a lone surrogate), which is no text")
        return Asked(of, text)

    def data_set_of(self, row: Mapping[str, Any], where: str) -> DataSet:
        """The data set that an object says, or the only one. Raises InputError where a mixture's says none."""
        if len(self.data.sets) == 1:
            return self.data.sets[0]
        names = [s.name for s in self.data.sets]
        if row.get("dataset") not in names:
            raise InputError(f'{where}: the run is a mixture, so it needs a "dataset": one of {", ".join(names)}')
        return self.data[row["dataset"]]
