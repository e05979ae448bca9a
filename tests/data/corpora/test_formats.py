"""Readers of the formats people have, the awkward cases included, on files written here."""

from __future__ import annotations

import json
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


def test_only_ascii_blanks_and_tabs_separate_columns(tmp_path: Path) -> None:
    tabs = "San\u00a0Jose\tB-LOC\nis\tO\n\nNew York\tB-LOC\n\u6771\u3000\u4eac\tB-LOC\n\u00a0\tO\n"
    assert read("conll2003", tmp_path, tabs) == [
        Row("San\u00a0Jose is", (("LOC", "San\u00a0Jose"),)),
        Row("New York \u6771\u3000\u4eac \u00a0", (("LOC", "New York"), ("LOC", "\u6771\u3000\u4eac"))),
    ]
    blanks = "10\u00a0000  B-MONEY\nEUR I-MONEY \n"
    assert read("conll2003", tmp_path, blanks) == [Row("10\u00a0000 EUR", (("MONEY", "10\u00a0000 EUR"),))]


def test_a_line_ends_at_lf_alone(tmp_path: Path) -> None:
    texts = [f"one{odd}two" for odd in "\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85"]
    rows = [Row(text, (("x",),)) for text in texts]
    lines = "".join(json.dumps({"text": text, "label": "x"}, ensure_ascii=False) + "\r\n" for text in texts)
    assert read("jsonl", tmp_path, "\ufeff" + lines) == rows


def test_gold_conll_without_a_layer_of_names_is_left_out_and_counted(tmp_path: Path) -> None:
    def document(name: str, part: int, *tagged: tuple[str, str]) -> str:
        return f"#begin document ({name}); part {part:03}\n{_gold_conll(*tagged)}\n#end document\n"

    named = document("a", 0, ("Ada", "(PERSON)")) + document("a", 1, ("Rain", "*"))
    bare = document("b", 0, ("Ada", "*")) + document("b", 1, ("Rain", "*"))
    (tmp_path / "x.gold_conll").write_text(named + bare)
    faults = Faults()
    assert [row.text for row in DATASETS["ontonotes5"].reader(tmp_path / "x.gold_conll", faults)] == ["Ada", "Rain"]
    assert faults.left_out == {"documents without a single name": 1}


@pytest.mark.parametrize("opened", ['2,"never closed,b\n', '2,"a,b\n1,c,d"\n', '2,"a "quoted" word",b\n'])
def test_a_quotation_mark_costs_its_own_row_only(opened: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(f"1,one,text\n{opened}" + "3,three,text\n" * 60)
    with pytest.raises(InputError, match="data:2: .*quot"):
        list(DATASETS["agnews"].reader(path, Faults()))
    faults = Faults("skip")
    texts = [row.text for row in DATASETS["agnews"].reader(path, faults)]
    assert texts.count("three text") == 60 and texts[0] == "one text"
    assert faults.first[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize("rest", ["", ",", ', {"text": "b", "trip', ' {"text": "b"}]', "] more"])
def test_an_array_that_is_not_whole_is_refused_also_under_skip(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text('[\n{"text": "a", "triple_list": []}' + rest)
    with pytest.raises(InputError, match=r"data:2: .*so the array cannot be read"):
        list(DATASETS["nyt24"].reader(path, Faults("skip")))


@pytest.mark.parametrize("content", ["[{}, {}]", "{}\n{}\n"], ids=["array", "lines"])
def test_latin_1_in_triples_breaks_its_own_object(content: str, tmp_path: Path) -> None:
    objects = ['{"text": "Medell\xedn", "triple_list": []}', '{"text": "Bern", "triple_list": []}']
    path = tmp_path / "data"
    path.write_bytes(content.format(*objects).encode("latin-1"))
    faults = Faults("skip")
    assert [row.text for row in DATASETS["nyt24"].reader(path, faults)] == ["Bern"]
    place = 17 + content.startswith("[")
    assert faults.first == [f"{path}:1: not UTF-8 text (byte {place} of the line)"]


HALF_AN_EMOJI = '{"text": "so \\ud83d", "label": "x"}\n'


@pytest.mark.parametrize(
    ("dataset", "content", "said"),
    [
        ("jsonl", HALF_AN_EMOJI, "half a character"),
        ("jsonl", '{"text": "a\\u0000", "label": "x"}\n', "NUL"),
        ("jsonl", '{"text": "a", "label": "x", "id": ["7"]}\n', '"id" is'),
        ("scierc", '{"sentences": ["abc"], "relations": [[]]}', "lists of tokens, not 'abc'"),
        ("scierc", '{"sentences": [["a"]], "relations": [null]}', "one list for each sentence, not None"),
        ("scierc", '{"sentences": [["a"]], "relations": [[[null, 0, 0, 0, "X"]]]}', "whole numbers"),
        ("scierc", '{"sentences": [["a"]], "relations": [[[1e999, 0, 0, 0, "X"]]]}', "whole numbers"),
        ("scierc", '{"sentences": [1], "relations": [[]]}', "lists of tokens, not 1"),
        ("14lap", "a b####{{}}\n", "not a Python list"),
        ("14lap", "a b####{[0]: 1}\n", "not a Python list"),
        ("14lap", "a b####" + "-" * 20_000 + "1\n", "not a Python list"),
        ("14lap", "a  b####[([1], [0], 'POS')]\n", "text that is not empty"),
        ("agnews", '1,t,"' + "x" * 131_073 + '"\n', "more than 131,072 characters"),
        ("conll2003", "\tO\n", "word is empty"),
        ("jsonl", '{"text": "a", "label": 1' + "0" * 5000 + "}\n", "too many digits"),
    ],
)
def test_values_that_nobody_means_are_a_sentence(dataset: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(dataset, tmp_path, content)
    assert said in str(error.value) and f"{tmp_path / 'data'}:1: " in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("dataset", DATASETS)
def test_utf16_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UTF-16 text; save it as UTF-8|header must name"):
        read(dataset, tmp_path, '{"text": "a"}\n'.encode("utf-16"))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data:2: not UTF-8"):
        read("jsonl", tmp_path, b'{"text": "a", "label": "x"}\n{"text": "\xff", "label": "x"}\n')
