"""Files and folders that are replaced: whatever instant the writer is killed at, the old or the new one is there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anit_ds.errors import InputError
from anit_ds.files import read_json, replacing, replacing_folder, sha256_of, write_atomically, write_json

# In one process: for every n, a fork that replaces what is there and gets SIGKILL just before the n-th thing it does to
# the file system, until one lives to the end. Prints what lies at the place after each death.
KILL_EVERYWHERE = """
import itertools, json, os, signal, sys
from pathlib import Path
from anit_ds import files

kind, place = sys.argv[1], Path(sys.argv[2])
if kind == "folder-two-renames":
    files._swap = lambda one, other: False

def write(text):
    if kind == "file":
        files.write_atomically(place, text)
    else:
        with files.replacing_folder(place) as unfinished:
            (unfinished / "first").write_text(text)
            (unfinished / "second").write_text(text)

def there(at):
    if kind == "file":
        return at.read_text() if at.exists() else None
    return sorted((path.name, path.read_text()) for path in at.iterdir()) if at.exists() else None

def die_before(number):
    count = itertools.count()
    def hook(event, arguments):
        if event.startswith(("open", "os.", "shutil.", "ctypes.")) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

write("0")
states = []
for number in itertools.count():
    old = there(place)
    child = os.fork()
    if child == 0:
        die_before(number)
        write(str(number + 1))
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    states.append([killed, number + 1, old, there(place), there(place.with_name(f".{place.name}.old"))])
    if not killed:
        break
    if there(place) is None:
        write(str(number + 1))
print(json.dumps(states))
"""


def content(kind: str, number: int) -> object:
    return str(number) if kind == "file" else [["first", str(number)], ["second", str(number)]]


@pytest.mark.parametrize("kind", ["file", "folder", "folder-two-renames"])
def test_a_kill_at_any_instant_leaves_the_old_or_the_new(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_EVERYWHERE, kind, str(tmp_path / "place")]
    states = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [killed for killed, *_ in states] == [True] * (len(states) - 1) + [False]
    outcomes = set()
    for _, number, old, found, aside in states:
        new = content(kind, number)
        if found is None:  # only between two renames, where names cannot be swapped
            assert kind == "folder-two-renames" and aside == old
        else:
            assert found in (old, new)
        outcomes.add("neither" if found is None else "new" if found == new else "old")
    assert outcomes == ({"old", "new", "neither"} if kind == "folder-two-renames" else {"old", "new"})
    leftovers = [path.name for path in tmp_path.iterdir() if path.name != "place"]
    assert kind == "file" or leftovers == []


def test_names_are_swapped_where_the_tests_run(tmp_path: Path) -> None:
    """Else the test above would have tried two renames twice."""
    from anit_ds.files import _swap

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not _swap(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap two names")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


def test_what_fails_in_the_block_changes_nothing(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    with replacing_folder(tmp_path / "folder") as unfinished:
        (unfinished / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "folder") as unfinished:
        (unfinished / "file").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_a_folder_keeps_nothing_of_the_one_before(tmp_path: Path) -> None:
    for names in (["a", "below/b"], ["c"]):
        with replacing_folder(tmp_path / "made" / "folder") as unfinished:
            for name in names:
                (unfinished / name).parent.mkdir(exist_ok=True)
                (unfinished / name).touch()
    assert [path.name for path in (tmp_path / "made").rglob("*")] == ["folder", "c"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path / 'nowhere'}: cannot write there \(No such file"):
        write_atomically(tmp_path / "nowhere" / "file", "text")


def test_json_is_read_back_from_a_folder_made_for_it(tmp_path: Path) -> None:
    content = {"été": [1, 2.5, None], "name": "a\nb"}
    write_json(tmp_path / "made" / "content.json", content)
    assert read_json(tmp_path / "made" / "content.json") == content
    assert "été" in (tmp_path / "made" / "content.json").read_text(encoding="utf-8")


def test_sha256_of_one_file_and_of_several(tmp_path: Path) -> None:
    parts = [os.urandom(3 << 20), b"", b"end"]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    assert sha256_of(paths[0]) == hashlib.sha256(parts[0]).hexdigest()
    assert sha256_of(*paths) == hashlib.sha256(b"".join(parts)).hexdigest()
