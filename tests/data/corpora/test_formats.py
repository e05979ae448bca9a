"""Readers of the formats people have, the awkward cases included, on files written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from anit_ds.data.corpora import DATASETS, Faults, Row
from anit_ds.errors import InputError


def read(dataset: str, folder: Path, content: str | bytes, name: str = "data") -> list[Row]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(DATASETS[dataset].reader(path, Faults()))


CONLL2003 = """\
-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
French JJ I-NP B-MISC
call NN I-NP O
. . O O

-DOCSTART- -X- -X- O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def test_iob1_with_adjacent_entities_of_one_type_and_one_at_a_documents_end(tmp_path: Path) -> None:
    assert read("conll2003", tmp_path, CONLL2003) == [
        Row("EU rejects German French call .", (("ORG", "EU"), ("MISC", "German"), ("MISC", "French"))),
        Row("Peter Blackburn", (("PER", "Peter Blackburn"),)),
    ]


def test_iob2_tags_mean_the_same_entities(tmp_path: Path) -> None:
    iob2 = CONLL2003.replace("I-ORG", "B-ORG").replace("JJ I-NP I-MISC", "JJ I-NP B-MISC")
    iob2 = iob2.replace("Peter NNP I-NP I-PER", "Peter NNP I-NP B-PER")
    assert read("conll2003", tmp_path, iob2) == read("conll2003", tmp_path, CONLL2003)


@pytest.mark.parametrize("dataset", ["conll2003", "ontonotes5", "wnut17"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.removesuffix("\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace("\n\n", "\n\t\n"),
    ],
    ids=["crlf", "no-final-newline", "bom", "tabs", "blank-lines-with-a-tab"],
)
def test_how_lines_end_makes_no_difference(dataset: str, change, tmp_path: Path) -> None:
    assert read(dataset, tmp_path, change(CONLL2003)) == read(dataset, tmp_path, CONLL2003)


def _gold_conll(*tagged: tuple[str, str]) -> str:
    """Lines in CoNLL-2012's columns; the entity column is the eleventh."""
    return "".join(
        f"bc/cctv/00/cctv_0000   0   {i}   {word}   NNP   (NP*)   -   -   -   Speaker#1   {tag}   *   (12)\n"
        for i, (word, tag) in enumerate(tagged)
    )


def test_gold_conll_with_nested_brackets(tmp_path: Path) -> None:
    sentence = _gold_conll(
        ("Bank", "(ORG*"), ("of", "*"), ("China", "(GPE))"), ("in", "*"), ("Hong", "(GPE*"), ("Kong", "*)"),
        ("1997", "(DATE)"),
    )  # fmt: skip
    content = f"#begin document (bc/cctv/00/cctv_0000); part 000\n{sentence}\n{sentence}#end document\n"
    row = Row(
        "Bank of China in Hong Kong 1997",
        (("ORG", "Bank of China"), ("GPE", "China"), ("GPE", "Hong Kong"), ("DATE", "1997")),
    )
    assert read("ontonotes5", tmp_path, content, "cctv_0000.v4_gold_conll") == [row, row]


def test_gold_conll_whose_brackets_do_not_match_is_broken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gold_conll:1: the entity brackets of the sentence 'Hong Kong'"):
        read("ontonotes5", tmp_path, _gold_conll(("Hong", "(GPE*"), ("Kong", "*")), "x.gold_conll")


def test_ontonotes_columns(tmp_path: Path) -> None:
    content = "Xinhua\tNNP\t(TOP(S*\tB-ORG\nNews\tNNP\t*\tI-ORG\ntoday\tNN\t*\tB-DATE\n"
    assert read("ontonotes5", tmp_path, content) == [
        Row("Xinhua News today", (("ORG", "Xinhua News"), ("DATE", "today")))
    ]


NYT24 = """[
  {"text": "Paris , capital of France", "triple_list": [
     ["France", "/location/country/capital", "Paris"], ["France", "/location/location/contains", "Paris"]]},
  {"text": "Nothing here", "triple_list": []}
]"""


@pytest.mark.parametrize(
    "content",
    [
        NYT24,
        "\ufeff" + NYT24,
        NYT24.replace("\n", "\r\n"),
        NYT24.replace("\n", " ").strip("[]").replace("},  {", "}\n{"),
    ],
    ids=["array", "bom", "crlf", "json-lines"],
)
def test_two_relations_between_one_pair(content: str, tmp_path: Path) -> None:
    assert read("nyt24", tmp_path, content) == [
        Row(
            "Paris , capital of France",
            (("/location/country/capital", "France", "Paris"), ("/location/location/contains", "France", "Paris")),
        ),
        Row("Nothing here", ()),
    ]


def test_scierc_spans_are_document_level_and_inclusive(tmp_path: Path) -> None:
    content = (
        '{"doc_key": "d", "sentences": [["We", "win", "."], ["HMM", "models", "for", "speech"]], '
        '"ner": [[], []], "relations": [[], [[3, 4, 6, 6, "USED-FOR"]]]}'
    )
    assert read("scierc", tmp_path, content) == [
        Row("We win .", (), "0.0"),
        Row("HMM models for speech", (("USED-FOR", "HMM models", "speech"),), "0.1"),
    ]


def test_aste_triplets(tmp_path: Path) -> None:
    content = "Great #### battery life .####[([2, 3], [0], 'POS'), ([3], [0], 'NEU')]\n"
    assert read("14lap", tmp_path, content) == [
        Row("Great #### battery life .", (("POS", "battery life", "Great"), ("NEU", "life", "Great")))
    ]


def test_ag_news_with_header_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = 'Class Index,Title,Description\n"3","He said ""sell""","line one\nline two"\n1,World,news\n'
    assert read("agnews", tmp_path, content) == [
        Row('He said "sell" line one line two', (("3",),)),
        Row("World news", (("1",),)),
    ]


@pytest.mark.parametrize("header", ["sentence\tlabel\n{}\t1\n", "label\tsentence\n1\t{}\n"])
def test_sst2_columns_in_either_order_and_quotes_kept(header: str, tmp_path: Path) -> None:
    assert read("sst2", tmp_path, header.format('a "quoted sentence')) == [Row('a "quoted sentence', (("1",),))]


def test_json_lines(tmp_path: Path) -> None:
    content = '{"text": "a", "label": "x", "id": 7}\n\n{"text": "b", "items": [["person", "b"]]}\n'
    assert read("jsonl", tmp_path, content) == [Row("a", (("x",),), "7"), Row("b", (("person", "b"),))]


BROKEN = {
    "conll2003": [("EU I-ORG\nrejects\n", 2), ("EU NNP I-NP X-ORG\n", 1)],
    "nyt24": [
        ('[{"text": "a", "triple_list": []},\n{"text": "b", "triple_list": [["x", "y"]]}]', 2),
        ('[\n{"text": 1}]', 2),
    ],
    "scierc": [
        ('{"sentences": [["a"]], "relations": [[[0, 0, 1, 1, "PART-OF"]]]}\n', 1),
        ('{"sentences": 1}', 1),
    ],
    "14lap": [
        ("fine .####[([0], [1], 'POS')]\nbad .####[([9], [0], 'POS')]\n", 2),
        ("no triplets\n", 1),
        ("a b####__import__('os')", 1),
    ],
    "agnews": [("1,a,b\n5,a,b\n", 2), ("1,only two\n", 1)],
    "sst2": [("sentence\tlabel\ngood\t1\nno label\n", 3), ("sentence\tlabel\ngood\t2\n", 2)],
    "jsonl": [
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', 2),
        ("[]\n", 1),
        ("{\n", 1),
        ('{"text": "a", "items": [["p", ""]]}', 1),
    ],
}


@pytest.mark.parametrize(
    ("dataset", "content", "line"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_a_broken_line_is_named_or_skipped_and_counted(dataset: str, content: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(content)
    with pytest.raises(InputError, match=f"data:{line}: "):
        list(DATASETS[dataset].reader(path, Faults("raise")))
    faults = Faults("skip")
    list(DATASETS[dataset].reader(path, faults))
    assert faults.skipped == 1
    assert f"data:{line}: " in faults.first[0]


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data:2: not UTF-8"):
        read("jsonl", tmp_path, b'{"text": "a", "label": "x"}\n{"text": "\xff", "label": "x"}\n')
