"""`anit_ds.data`, the configuration and the command line work where torch and its kin cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BLOCK = 'import sys\nfor name in ("torch", "transformers", "deepspeed", "peft"): sys.modules[name] = None\n'
IMPORT_ALL = (
    BLOCK
    + """
import importlib, pkgutil
import anit_ds.data
names = [module.name for module in pkgutil.walk_packages(anit_ds.data.__path__, "anit_ds.data.")]
for name in [*names, "anit_ds.config", "anit_ds.configfile", "anit_ds.runfolder", "anit_ds.commands.cli"]:
    importlib.import_module(name)
print(*names)
"""
)
BUILD = BLOCK + 'from anit_ds.commands.cli import main\nsys.argv = ["anit", "data", sys.argv[1]]\nmain()\n'


def test_every_module_is_imported_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(__file__).parents[2] / "anit_ds" / "data"
    modules = {".".join(path.relative_to(folder.parents[1]).with_suffix("").parts) for path in folder.rglob("*.py")}
    expected = {name.removesuffix(".__init__") for name in modules} - {"anit_ds.data"}
    assert set(done.stdout.split()) == expected


def test_a_noisy_set_is_built_without_torch(review_folder: Path, tmp_path: Path) -> None:
    config = {
        "model": {"name_or_path": "not/loaded"},
        "data": {
            "dataset": "jsonl",
            "path": str(review_folder),
            "instructions": "concise",
            "instructions_file": str(review_folder / "instructions.yaml"),
        },
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-c", BUILD, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run" / "data" / "train.jsonl").read_text().splitlines()) == 21
