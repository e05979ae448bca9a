"""`anit export --push` beside a stub of the Hugging Face hub on this machine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from jsonhandler import JsonHandler

from anit_ds.config import Config
from anit_ds.training import train

TOKEN = "hf_not_a_real_one"
Anit = Callable[..., str]


class Hub(JsonHandler):
    """What the hub answers to `create_repo` and `upload_folder`, and what it was sent."""

    server: Any

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.server.tokens.add(self.headers["authorization"])
        address = f"http://127.0.0.1:{self.server.server_port}/ada/spam"
        if self.server.full:
            return self.reply({"error": "no room left for ada"}, 403)
        if self.path == "/api/repos/create":
            self.server.made = json.loads(raw)
            return self.reply({"url": address})
        if self.path == "/api/models/ada/spam/preupload/main":
            wanted = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply({"files": [{"path": f["path"], **wanted} for f in json.loads(raw)["files"]]})
        if self.path == "/api/models/ada/spam/commit/main":
            lines = [json.loads(line) for line in raw.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            return self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/0"})
        return self.reply({})  # the card's metadata is fine


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.tokens, server.made, server.files, server.full = set(), {}, {}, False
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_exported_is_sent(hub: Any, make_config: Callable[..., Config], anit: Anit, tmp_path: Path):
    config, out = make_config(**{"train.epochs": 1, "eval.test": False}), tmp_path / "out"
    train(config)
    said = anit("export", config.out, out, "--push", "ada/spam")
    assert f"sent to http://127.0.0.1:{hub.server_port}/ada/spam" in said
    assert (hub.made["organization"], hub.made["name"], hub.made["visibility"]) == ("ada", "spam", "private")
    assert hub.files == {file.name: file.read_bytes() for file in out.iterdir()}
    assert {"adapter_model.safetensors", "README.md", "prompt.json"} <= set(hub.files)
    card = hub.files["README.md"].decode()
    assert config.model.name_or_path not in card, "a folder here is nobody's matter"
    (told,) = re.findall(r"Settings that are not defaults: (.*)\.", card)
    assert "`train.epochs: 1.0`" in told and "lora.dropout" not in told, "its default has moved, and the run has it"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in said and not any(TOKEN.encode() in content for content in hub.files.values())

    hub.full = True
    assert "--public: is of the repository" in anit("export", config.out, tmp_path / "none", "--public", code=2)
    said = anit("export", config.out, tmp_path / "again", "--push", "ada/spam", "--public", code=1)
    assert "again is written and was not sent to ada/spam: " in said and "403" in said and TOKEN not in said
    assert (tmp_path / "again" / "README.md").is_file()


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("spam", lambda m: None, "'spam' is no owner/name"), ("ada/sp am", lambda m: None, "'ada/sp am' is no"),
        ("ada/spam", lambda m: m.setattr(constants, "HF_HUB_OFFLINE", True), "the hub is switched off"),
        ("ada/spam", lambda m: m.delenv("HF_TOKEN"), "needs a token that may write; set HF_TOKEN"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_said_before_anything_is_written(
    name: str, change: Callable[[Any], None], said: str, hub: Any, monkeypatch: pytest.MonkeyPatch, anit: Anit,
    tmp_path: Path,
):  # fmt: skip
    change(monkeypatch)
    assert said in anit("export", tmp_path / "run", tmp_path / "out", "--push", name, code=2)
    assert hub.tokens == set() and not (tmp_path / "out").exists()
