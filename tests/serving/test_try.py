"""`anit try` in a terminal and in a pipe, beside what `anit predict` says."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anit_ds.commands.describe import describe_answer

UP, CTRL_D = b"\x1b[A", b"\x04"


def test_a_terminal_has_a_history_and_ends_with_ctrl_d(run: Path, predicted: list[dict[str, Any]], tmp_path: Path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "anit_ds", "try", str(run)]
    with (tmp_path / "stderr").open("wb") as stderr:
        program = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=stderr)
    os.close(theirs)

    def answer() -> str:
        """What is said up to the next prompt."""
        said = b""
        while not said.endswith(b"> "):
            try:
                said += os.read(ours, 4096)
            except OSError:  # the program has ended
                pytest.fail(f"{said!r}, {program.wait()}, {(tmp_path / 'stderr').read_text()}")
        return said.decode().replace("\r\n", "\n")

    answer()
    answers = []
    for typed in (predicted[3]["text"].encode() + b"\n", b"\n", UP + b"\n"):
        os.write(ours, typed)
        answers.append(answer())
    os.write(ours, CTRL_D)
    assert program.wait(60) == 0
    os.close(ours)
    expected = predicted[3]["answer"] or "(an empty answer)"
    assert expected in answers[0] and "negative  0." in answers[0] and expected in answers[2]
    assert "0." not in answers[1], "a blank line is no text"


def test_a_pipe_is_answered_in_batches(
    run: Path, predicted: list[dict[str, Any]], anit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def piped(raw: bytes, *arguments: object, code: int = 0) -> str:
        stdin = SimpleNamespace(buffer=io.BytesIO(raw), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)
        return anit("try", run, *arguments, code=code)

    said = piped("\n\n".join(row["text"] for row in predicted).encode())
    assert said.count("> test ") == len(predicted) and "not calibrated" not in said
    for row in predicted:
        first = describe_answer(row, {"positive": "positive", "negative": "negative"}).splitlines()[0]
        assert f"> {row['text']}\n{first}\n" in said
    assert "by probability: no label" in piped(b"a text", "--threshold", "positive=1", "--threshold", "negative=1")
    assert "line 2: not UTF-8" in piped(b"a text\n\xff", code=2)
    assert "--constrained: is for tasks with spans" in piped(b"", "--constrained", code=2)
