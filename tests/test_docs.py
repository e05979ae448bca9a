"""What README and docs/ print is true: links lead somewhere, code runs, configurations load, command lines parse."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
import yaml

from anit_ds.adversarial import Batch, PerturbableLM
from anit_ds.adversarial.rules import METHODS
from anit_ds.commands.cli import cli
from anit_ds.config import Config
from anit_ds.configfile import load_config
from anit_ds.data.instructions import load_instructions
from anit_ds.experiments import load_compare_config
from anit_ds.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "kernels/README.md",
                    "ds_configs/README.md", "results/**/README.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
)  # fmt: skip
LAUNCHED = re.compile(r"(launch|benchmarks|examples)/\S+\.(sh|sbatch|py)$")
A_RUN = {"model": {"name_or_path": "none"}, "data": {"dataset": "sst2", "path": "none"}, "out": "runs/none"}


class Block(NamedTuple):
    """A fenced block: its page and line, what is said right before it, and its content."""

    page: str
    line: int
    before: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            before = text[: match.start()].rstrip().rpartition("\n")[2]
            yield Block(name_of(page), text.count("\n", 0, match.start()) + 1, before, match[1])


def the_block(language: str, page: str, containing: str) -> Block:
    (found,) = [block for block in blocks(language) if block.page == page and containing in block.text]
    return found


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return made


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def test_there_are_pages_links_and_blocks() -> None:
    assert {"README.md", "docs/method.md", "kernels/README.md", "benchmarks/PROFILE.md"} <= {name_of(p) for p in PAGES}
    assert len(list(links())) > 50
    assert all(len(list(blocks(language))) > 3 for language in ("bash", "yaml", "python"))


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    dead = []
    for page, target in links():
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(f"{name_of(page)}: {target}")
    assert not dead


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_docstrings_cite_headings_that_are_there() -> None:
    """`docs/method.md section 4`, and no specification that is not in the repository."""
    headings = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d)\. ", headings, flags=re.MULTILINE))
    equations = set(re.findall(r"\(eq\. (\d)\)", headings))
    sources = [file for folder in ("anit_ds", "kernels", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    cited = 0
    for source in sources:
        text = " ".join(source.read_text(encoding="utf-8").split())
        assert not re.search(r"(?<!docs/)\bmethod\.md", text), f"{source}: cites method.md without its folder"
        for section in re.findall(r"docs/method\.md,? section (\d)", text):
            assert section in sections, f"{source}: section {section}"
            cited += 1
        for equation in re.findall(r"\beq\. (\d)", text):
            assert equation in equations, f"{source}: eq. {equation}"
    assert cited > 10


def test_the_tables_of_results_are_those_of_the_cells() -> None:
    """`.venv/bin/cog -I examples/study -r docs/results.md` makes them anew."""
    cog = [sys.executable, "-m", "cogapp", "--check", "--diff", "-I", "examples/study", "docs/results.md"]
    done = subprocess.run(cog, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def a_training_loop() -> dict[str, object]:
    model = tiny_model()
    ids = torch.randint(2, 250, (3, 10))
    labels = torch.where(torch.arange(10) < 7, -100, ids)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(ids, torch.ones_like(ids), labels)] * 3,
    }


MARKED = [block for block in blocks("python") if block.before.startswith("<!-- run by tests/test_docs.py")]


@pytest.mark.parametrize("block", MARKED, ids=str)
def test_marked_python_runs_as_printed(block: Block) -> None:
    scope = a_training_loop()
    if "text) in" in block.text:  # of each minibatch what may be perturbed too
        scope["loader"] = [(*minibatch, torch.arange(10).expand(3, 10) < 5) for minibatch in scope["loader"]]
    before = {n: p.clone() for n, p in scope["model"].named_parameters()}
    exec(compile(block.text, str(block), "exec"), scope)
    total, weight = scope["stats"]["loss/adversarial"]
    assert torch.isfinite(total / weight)
    assert any(not torch.equal(before[n], p) for n, p in scope["model"].named_parameters())


def test_the_example_of_a_noise_is_one() -> None:
    from anit_ds.data.noise import functions

    scope = dict(vars(functions))
    exec(the_block("python", "CONTRIBUTING.md", "def repetition").text, scope)
    assert scope["repetition"]("say it", 1.0, 1) == "say say it it"


def test_the_example_of_a_data_set_is_one(tmp_path: Path) -> None:
    from anit_ds.data.corpora import agnews
    from anit_ds.data.corpora.reading import Faults

    scope = {**vars(agnews), "LABELS": ("joy", "fear")}
    exec(the_block("python", "CONTRIBUTING.md", "def read_emotion").text, scope)
    file, faults = tmp_path / "train.txt", Faults("skip")
    file.write_text("it; is good;joy\n\nwho knows;doubt\n;fear\n")
    assert [(row.text, row.items) for row in scope["read_emotion"](file, faults)] == [("it; is good", (("joy",),))]
    assert faults.skipped == 2 and "label 'doubt' is not one of joy, fear" in faults.first[0]


def test_the_example_of_a_method_is_one() -> None:
    from anit_ds.adversarial.methods import noise_only
    from anit_ds.adversarial.methods.ball import moved

    scope = {**vars(noise_only), "moved": moved}
    exec(the_block("python", "CONTRIBUTING.md", "class RandomSigns").text, scope)
    ids = torch.randint(2, 250, (3, 10))
    labels = torch.where(torch.arange(10) < 7, -100, ids)
    batch = Batch.from_labels(ids, torch.ones_like(ids), labels, beta=0.3, step=0)
    stats = scope["RandomSigns"](eps=0.1).backward(PerturbableLM(tiny_model()), batch)
    assert all(torch.isfinite(stats[f"loss/{part}"][0]) for part in ("clean", "adversarial"))


def test_the_rest_of_the_python_compiles_and_its_names_exist() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text, str(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("anit_"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_the_short_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(the_block("yaml", "README.md", "out: runs/14lap-anit").text)
    assert load_config(file).method.name == "anit"


@pytest.mark.parametrize("block", list(blocks("yaml")), ids=str)
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """A comparison, the instructions of a data set, or a part of a run's configuration."""
    content = yaml.safe_load(block.text)
    file = tmp_path / "printed.yaml"
    file.write_text(block.text)
    if "grid" in content:
        load_compare_config(file)
    elif "question" in content:
        load_instructions(file)
    else:
        assert set(content) <= set(Config.model_fields)
        file.write_text(yaml.safe_dump({**A_RUN, **content}))
        load_config(file)


def command_lines() -> Iterator[tuple[Block, list[str]]]:
    """Every command of the ```bash blocks as words, without redirections; the parts of a pipe are commands each."""
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(re.sub(r"<[^>]*>", "PLACEHOLDER", line), posix=True, punctuation_chars="|;&>")
            lexer.whitespace_split, lexer.commenters = True, "#"
            command: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set("|;&"):
                    command.append(word)
                elif command:
                    yield block, command[: command.index(">")] if ">" in command else command
                    command = []


def anit_lines() -> list[tuple[Block, list[str]]]:
    lines = []
    for block, words in command_lines():
        place = next((i for i, word in enumerate(words) if word.rpartition("/")[2] == "anit"), None)
        if place is not None:
            lines.append((block, words[place + 1 :]))
    return lines


@pytest.mark.parametrize("block, words", anit_lines(), ids=lambda given: str(given) if isinstance(given, Block) else "")
def test_anit_command_lines_parse(block: Block, words: list[str], tmp_path: Path) -> None:
    """click takes every option and argument, and a configuration every override."""
    group = cli.make_context("anit", list(words))
    name, command, rest = cli.resolve_command(group, words)
    try:
        context = command.make_context(name, rest, parent=group)
    except click.exceptions.Exit:
        return  # --help
    overrides = context.params.get("overrides", ())
    if overrides and name != "compare":
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(A_RUN))
        load_config(file, overrides)
    if name == "compare" and not context.params["init"]:
        load_compare_config(ROOT / context.params["config"], overrides)


def test_the_shell_completes_anit() -> None:
    """As the script `anit` would, wherever it lies."""
    script = "import sys; sys.argv[0] = '/somewhere/.venv/bin/anit'; from anit_ds.commands.cli import main; main()"
    asked = {"_ANIT_COMPLETE": "bash_complete", "COMP_WORDS": "anit ev", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["plain,eval"]


def test_every_command_is_shown() -> None:
    assert {words[0] for _, words in anit_lines()} >= set(cli.commands) - {"demo"}  # which `make demo` shows


def test_scripts_and_make_targets_are_there_with_the_options_shown() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    seen = Counter[str]()
    for block, words in command_lines():
        for place, word in enumerate(words):
            if LAUNCHED.match(word):
                text = (ROOT / word).read_text(encoding="utf-8")
                if word.startswith("launch/"):
                    text += (ROOT / "launch/common.sh").read_text(encoding="utf-8")
                until = words.index("anit") if "anit" in words else len(words)
                for option in words[place + 1 : until]:
                    assert not option.startswith("--") or option in text, f"{block}: {word} has no option {option}"
                seen[word] += 1
        if words[0] == "make":
            for target in words[1:]:
                assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{block}: make {target}"
                seen["make"] += 1
    assert {"make", "launch/local.sh", "launch/ssh.sh", "launch/slurm.sbatch", "launch/node.sh"} <= set(seen)


def test_the_table_of_methods_lists_what_each_reads() -> None:
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|\n]*\|[^|\n]*\| (.*) \|$", page, flags=re.MULTILINE)
    shown = {name: {key.replace("lambda", "lambda_") for key in re.findall(r"`(\w+)`", keys)} for name, keys in rows}
    assert shown == {name: set(rules.reads) - {"schedule"} for name, rules in METHODS.items()}
