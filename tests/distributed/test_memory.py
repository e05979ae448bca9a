"""What a rank may use of its machine, under the limits of control groups of either version."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from anit_ds.ranks import memory


def group(folder: Path, limit: str, used: int, *, old: bool = False) -> None:
    folder.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    droppable = "total_inactive_file" if old else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file 1\n{droppable} 100\n")


def test_every_group_around_the_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "groups" / "job_7", "4000", 1100)
    group(tmp_path / "groups" / "job_7" / "step_0", "max", 900)
    group(tmp_path / "groups" / "job_7" / "step_0" / "task_1", "3000", 600)
    (tmp_path / "own").write_text("0::/job_7/step_0/task_1\n")
    assert list(memory.limits(tmp_path / "own", tmp_path / "groups")) == [(3000, 500), (4000, 1000)]


def test_the_older_version_has_a_tree_for_memory(tmp_path: Path) -> None:
    group(tmp_path / "groups" / "memory" / "slurm", "4000", 1100, old=True)
    (tmp_path / "own").write_text("5:cpu,cpuacct:/elsewhere\n4:memory:/slurm/uid_0\n")
    assert list(memory.limits(tmp_path / "own", tmp_path / "groups")) == [(4000, 1000)]


def test_a_container_s_own_group_is_its_root(tmp_path: Path) -> None:
    group(tmp_path / "groups", "4000", 1100)
    (tmp_path / "own").write_text("0::/\n")
    assert list(memory.limits(tmp_path / "own", tmp_path / "groups")) == [(4000, 1000)]


def test_a_group_that_is_not_mounted_is_the_root(tmp_path: Path) -> None:
    group(tmp_path / "groups", "4000", 1100)
    (tmp_path / "own").write_text("0::/docker/0123abc\n")
    assert list(memory.limits(tmp_path / "own", tmp_path / "groups")) == [(4000, 1000)]


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limits", lambda: [(5000, 1000), (4000, 1000)])
    assert (memory.memory_bytes(), memory.free_bytes()) == (4000, 3000)


def test_here_it_is_no_more_than_the_machine_s() -> None:
    assert 0 < memory.free_bytes() <= memory.memory_bytes() <= psutil.virtual_memory().total
