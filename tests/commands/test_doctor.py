"""`anit doctor` on this machine, and with each piece broken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from anit_ds import doctor_checks
from anit_ds.commands.cli import cli


def only(findings: Iterator[doctor_checks.Finding]) -> doctor_checks.Finding:
    (finding,) = findings
    return finding


def test_a_good_machine_ends_with_0_and_says_each_thing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MASTER_PORT", raising=False)
    answer = CliRunner().invoke(cli, ["doctor", "--out", str(tmp_path / "runs" / "later")])
    assert answer.exit_code == 0, answer.output
    assert not (tmp_path / "runs").exists(), "it only looks"
    for what in ("python", "torch", "deepspeed", "accelerator", "kernel", "ranks", "extensions", "disk", "port", "ssh"):
        assert sum(line.split()[1:2] == [what] for line in answer.output.splitlines()) == 1, answer.output
    assert "two gloo ranks talk" in answer.output or "two NCCL ranks talk" in answer.output


def test_a_stale_lock_is_an_error_and_its_removal_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert only(doctor_checks.check_extensions_lock()).level == "warning", (
        "a fresh one may be a compilation in progress"
    )
    os.utime(lock, (0, 0))
    found = only(doctor_checks.check_extensions_lock())
    assert (found.level, found.cure) == ("error", f"rm {lock}")


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    found = only(doctor_checks.check_disk(tmp_path, needed=1e18, wished=1e18))
    assert found.level == "error" and "GB free" in found.text and found.cure
    assert only(doctor_checks.check_disk(tmp_path, needed=0, wished=1e18)).level == "warning"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny disk needs root")
def test_a_disk_of_one_page_cannot_be_written(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        found = only(doctor_checks.check_disk(tmp_path / "run"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert found.level == "error" and "No space left" in found.text


def test_a_port_in_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        found = only(doctor_checks.check_port())
    assert found.level == "error" and port in found.text
    assert only(doctor_checks.check_port()).level == "ok"


@pytest.mark.parametrize("nonsense", ["ninety", "99999"])
def test_a_port_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    monkeypatch.setenv("MASTER_PORT", nonsense)
    assert only(doctor_checks.check_port()).level == "error"


def test_a_hub_cache_that_is_no_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    found = only(doctor_checks.check_hub_cache())
    assert found.level == "error" and "HF_HOME" in found.cure


def test_an_interface_that_is_not_there_keeps_ranks_from_talking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = only(doctor_checks.check_ranks(timeout=60))
    assert found.level == "error" and "GLOO_SOCKET_IFNAME" in found.cure


def test_a_missing_or_old_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "requires", lambda _: ["no-such-package>=1", "click>=1000", "torch>=2"])
    missing, old, torch = [f for f in doctor_checks.check_packages() if f.what != "python"]
    assert (missing.level, missing.cure) == ("error", "pip install 'no-such-package>=1'")
    assert old.level == "error" and "too old" in old.text
    assert torch.level == "ok"


def test_an_error_is_the_exit_code(tmp_path: Path) -> None:
    code = subprocess.run(
        [sys.executable, "-m", "anit_ds.commands.cli", "doctor"],
        env={**os.environ, "MASTER_PORT": "ninety"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert code.returncode == 1, code.stdout
    assert "error    port" in code.stdout and "cure:" in code.stdout
