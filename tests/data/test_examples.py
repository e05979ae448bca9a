"""Examples and samples: their JSON, their keys, and the file that holds many."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anit_ds.data.examples import Example, Sample, sample_key
from anit_ds.data.recordfile import RecordFile

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
ITEMS = st.lists(st.tuples(ANY_TEXT, ANY_TEXT)).map(tuple)


@given(id=ANY_TEXT, text=ANY_TEXT, items=ITEMS)
def test_json_gives_back_the_example(id: str, text: str, items) -> None:
    example = Example(id, text, items)
    assert "\n" not in example.to_json()
    assert Example.from_json(example.to_json()) == example


@given(text=ANY_TEXT, items=ITEMS, distance=st.integers(0, 99), distortion=st.floats(0, 1))
def test_a_line_gives_back_the_sample(text: str, items, distance: int, distortion: float) -> None:
    sample = Sample("a/1", "a", text, items, text, "raw", "q", "f", "o", text, "shuffle", distance, distortion)
    assert sample.to_line().count(b"\n") == 1
    assert Sample.from_json(sample.to_line()) == sample


def test_sample_keys_are_blake2b_little_endian() -> None:
    # From coreutils: printf 14lap/train/17 | b2sum -l 64
    assert sample_key("14lap/train/17") == int.from_bytes(bytes.fromhex("2a28ca8ae0c7bdc7"), "little")


@given(st.lists(ANY_TEXT, unique=True))
def test_sample_keys_tell_ids_apart(ids: list[str]) -> None:
    keys = {sample_key(id) for id in ids}
    assert len(keys) == len(ids)
    assert all(0 <= key < 2**64 for key in keys)


def test_a_record_file_behaves_like_its_list(tmp_path: Path) -> None:
    examples = [Example(f"x/{i}", f"text\u2028 {i}\x85", ()) for i in range(3000)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(e.to_json() + "\n" for e in examples), encoding="utf-8")
    file = RecordFile(path, Example.from_json)
    for same in (file, pickle.loads(pickle.dumps(file))):
        assert len(same) == 3000
        assert list(same) == examples
        assert (same[0], same[-1], same[2999]) == (examples[0], examples[-1], examples[2999])
        assert same[5:9] == examples[5:9]
        assert same[9:5] == []
        assert same[::700] == examples[::700]
        assert same[2990:5000] == examples[2990:]
    with pytest.raises(IndexError, match="has 3000 records"):
        file[3000]


def test_an_empty_record_file(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    file = RecordFile(tmp_path / "none.jsonl", Example.from_json)
    assert (len(file), list(file), file[:3]) == (0, [], [])
