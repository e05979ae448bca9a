"""Every reader on damaged files and odd rows: they are read, refused in one sentence, or left out and counted.

pytest tests/fuzz --fuzz-cases 100000 -s     # as many cases as one likes; the outcomes are printed
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from odd import Odd, within

from anit_ds.config import Columns
from anit_ds.data.corpora import DATASETS, DatasetInfo, Faults, Row, dataset_info
from anit_ds.data.corpora.hub import hub_splits
from anit_ds.data.tasks import TASKS, Parsed
from anit_ds.errors import InputError

_COLUMNS = (
    "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP B-MISC\n. . O O\n\n-DOCSTART- -X- O O\n\nAda\tB-PER\n\n"
)
_GOLD = "#begin document (a); part 000\n" + "".join(
    f"a   0   {i}   {word}   NNP   *   -   -   -   -   {tag}   *   (12)\n"
    for i, (word, tag) in enumerate([("Bank", "(ORG*"), ("of", "*"), ("China", "(GPE))"), ("1997", "(DATE)")])
)
_TRIPLE = {"text": "Paris in France", "triple_list": [["France", "/location/country/capital", "Paris"]]}
_SCIERC = {"sentences": [["We", "win"], ["HMM", "for", "speech"]], "relations": [[], [[2, 2, 4, 4, "USED-FOR"]]]}
OBJECTS: dict[str, list[Any]] = {
    "jsonl": [{"text": "a", "label": "x", "id": 7}, {"text": "b", "items": [["person", "b"]]}],
    "movie-reviews": [{"text": "a", "label": "positive"}],
    "own.jsonl": [
        {"msg": "Ada", "spans": [{"start": 0, "end": 3, "label": "x"}]},
        {"msg": "b", "spans": [[0, 1, "y"]]},
    ],
    "tags.jsonl": [{"msg": "a", "tags": ["x", "y"]}, {"msg": "b", "tags": []}],
    "scierc": [_SCIERC],
    "nyt24": [_TRIPLE, {"text": "nothing", "triple_list": []}],
}
FILES: dict[str, list[str]] = {
    "sst2": ["sentence\tlabel\na good one\t1\na bad one\t0\n", "label\tsentence\tx\n1\tgood\ty\n"],
    "agnews": ['Class Index,Title,Description\n"3","He said ""sell""","one\ntwo"\n1,World,news\n4,"a","b"\n'],
    "conll2003": [_COLUMNS],
    "wnut17": [_COLUMNS],
    "ontonotes5": [_COLUMNS, f"{_GOLD}\n{_GOLD}#end document\n"],
    "14lap": ["Great battery life .####[([1, 2], [0], 'POS'), ([2], [0], 'NEU')]\n" * 3],
    "nyt24": [json.dumps([_TRIPLE] * 3, indent=1)],
    "webnlg": [json.dumps([_TRIPLE])],
    "own.csv": ['msg,spans\na,\n"b ""c""\nd","[[0, 1, ""x""]]"\n', "x;msg;spans\n1;b;[]\n"],
    "tags.csv": ['msg,tags\na,\n"b","[""x"", ""y""]"\n'],
    "flags.csv": ["msg,rude,sad\na,1,0\nb,0.0,true\n"],
    "own.tsv": ['msg\tspans\nAda "\t[[0, 3, "x"]]\n'],
}
_OWN = {
    "own": Columns(text="msg", entities="spans"),
    "tags": Columns(text="msg", label="tags"),
    "flags": Columns(text="msg", label=("rude", "sad")),
}
HUB: dict[str, list[dict[str, Any]]] = {
    "conll2003": [{"tokens": ["Peter", "in", "Rome"], "ner_tags": [1, 0, 5]}, {"tokens": ["a"], "tags": ["B-PER"]}],
    "ontonotes5": [{"sentences": [{"words": ["Xinhua", "today"], "named_entities": [7, 15]}]}],
    "scierc": [_SCIERC],
    "nyt24": [_TRIPLE],
    "14lap": [{"text": "Great screen", "aspect_term": "screen", "opinion_term": "Great", "sentiment": "positive"}],
    "sst2": [{"sentence": "good", "label": 1}],
    "agnews": [{"text": "world news", "label": 0}],
    "jsonl": [{"text": "a", "items": [["person", "a"]]}, {"text": "a", "label": "x"}],
}


def _info(dataset: str) -> DatasetInfo:
    return dataset_info(dataset, _OWN.get(dataset.partition(".")[0]))


def _content(odd: Odd, dataset: str) -> bytes:
    """A file of this data set that something happened to."""
    rng = odd.rng
    if dataset in FILES and (dataset not in OBJECTS or rng.random() < 0.5):
        raw = rng.choice(FILES[dataset]).encode()
        if rng.random() < 0.3:  # a cell
            cells = raw.decode().split(at := rng.choice(["\t", " ", ",", "\n"]))
            cells[rng.randrange(len(cells))] = odd.text()
            return at.join(cells).encode("utf-8", "surrogatepass")
    else:
        lines = [json.dumps(odd.changed(row) if rng.random() < 0.7 else row) for row in OBJECTS[dataset] * 2]
        raw = "\n".join(lines).encode("utf-8", "surrogatepass")
        if rng.random() < 0.6:
            return raw
    return odd.damaged(raw)


class _Stream(list[dict[str, Any]]):
    """Rows as `datasets` streams them."""

    features = None

    def take(self, count: int) -> list[dict[str, Any]]:
        return self[:count]


def _look(rows: Iterable[Row], task: str | None) -> int:
    """What every row that is read must be; how many there are."""
    count = 0
    for row in rows:
        count += 1
        spans = [part for item in row.items for part in item]
        assert row.text.strip() and all(isinstance(part, str) and part for part in spans)
        "".join((row.text, row.id or "", *spans)).encode("utf-8")  # no half characters
        if task is not None:
            words = {item[0]: f"label {number}" for number, item in enumerate(row.items)}
            answer = TASKS[task].render(row.items, words)
            items = tuple((next(raw for raw in words if words[raw] == words[i[0]]), *i[1:]) for i in row.items)
            assert TASKS[task].parse(answer.strip(), words) == Parsed(items)
    return count


def _outcome(rows: Iterable[Row], faults: Faults, task: str | None) -> str:
    try:
        with within(5):
            count = _look(rows, task)
    except InputError as error:
        said = str(error)
        assert len(said) < 700 and "\n" not in said and "Traceback" not in said
        return "refused"
    return "counted" if faults.skipped or faults.left_out else "read" if count else "read, no row"


def test_files(fuzz_cases: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()
    datasets = sorted({*OBJECTS, *FILES})
    for seed in range(fuzz_cases):
        odd = Odd(seed)
        dataset = odd.rng.choice(datasets)
        content = _content(odd, dataset)
        path = tmp_path / ("x.gold_conll" if dataset == "ontonotes5" and b"begin" in content else f"data-{dataset}")
        path.write_bytes(content)
        own = {"own": "ner", "tags": "multilabel", "flags": "multilabel"}
        task = own.get(dataset.partition(".")[0]) or _info(dataset).task
        faults = Faults(odd.rng.choice(["raise", "skip"]), task)
        try:
            outcomes[_outcome(_info(dataset).reader(path, faults), faults, task)] += 1
        except BaseException as error:
            raise AssertionError(f"case {seed}, {dataset}, {faults.on_error}: {content[:2000]!r}") from error
    assert all(outcomes[kind] > fuzz_cases / 100 for kind in ("read", "refused", "counted")), outcomes
    with capsys.disabled():
        print(f"\nreaders: {dict(outcomes)}")


def test_hub_rows(fuzz_cases: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    outcomes: Counter[str] = Counter()
    for seed in range(fuzz_cases // 4):
        odd = Odd(seed)
        dataset = odd.rng.choice(list(HUB))
        good = odd.rng.choice(HUB[dataset])
        rows = [{key: odd.changed(value) if odd.rng.random() < 0.4 else value for key, value in good.items()}]
        stream = _Stream([*rows, good, *rows] if odd.rng.random() < 0.5 else rows * 2)
        monkeypatch.setattr("datasets.load_dataset", lambda *_, _stream=stream, **__: {"train": _stream})
        task = DATASETS[dataset].task
        faults = Faults(odd.rng.choice(["raise", "skip"]), task)
        try:
            outcomes[_outcome(_hub_rows(dataset, faults), faults, task)] += 1
        except BaseException as error:
            raise AssertionError(f"case {seed}, {dataset}, {faults.on_error}: {list(stream)!r:.2000}") from error
    assert all(outcomes[kind] > fuzz_cases / 400 for kind in ("read", "refused", "counted")), outcomes
    with capsys.disabled():
        print(f"\nhub: {dict(outcomes)}")


def _hub_rows(dataset: str, faults: Faults) -> Iterable[Row]:
    yield from hub_splits(dataset, DATASETS[dataset], "owner/name", faults.task)["train"](faults)
