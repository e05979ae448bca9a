"""The builder of noisy sets: what it writes, that it is pure in its seeds, and that it goes on where it stopped."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from matrix import rows

from anit_ds.config import DistortionConfig, NoiseConfig
from anit_ds.data.corpora import Corpus
from anit_ds.data.examples import Example, Sample
from anit_ds.data.instructions import Instructions, load_instructions
from anit_ds.data.noise import NOISES, NoisySet, Recipe, build_noisy_set, noisy_split, parts
from anit_ds.errors import InputError
from anit_ds.sealed import read_sealed

SPLITS = ("train", "dev", "test")


def corpus(size: int = 300) -> Corpus:
    def split(name: str, count: int) -> list[Example]:
        return [Example(f"sst2/{name}/{i}", f"text number {i} of {name}", ((str(i % 2),),)) for i in range(count)]

    return Corpus("sst2", "classification", split("train", size), split("dev", 20), split("test", 30))


def build(
    out: Path | None = None, *, size: int = 300, workers: int | None = None, normalise: str = "auto", **settings: Any
) -> NoisySet:
    noise = {key: settings.pop(key) for key in ("kind", "omega", "phi") if key in settings}
    recipe = Recipe(
        load_instructions("sst2"),
        "detailed",
        NoiseConfig(**noise),
        DistortionConfig(normalise=normalise),
        **{"seed": 42, **settings},
    )
    return build_noisy_set(corpus(size), recipe, out=out, workers=workers)


@pytest.mark.parametrize("kind", [*NOISES, "none"])
def test_only_the_instruction_is_ever_noisy(kind: str) -> None:
    noisy, raw = build(kind=kind), build(kind="none")
    for split in SPLITS:
        for sample, clean in zip(getattr(noisy, split), getattr(raw, split), strict=True):
            for field in ("id", "text", "items", "raw_instruction", "question", "format", "options", "answer"):
                assert getattr(sample, field) == getattr(clean, field)
            if split != "train":
                assert sample == clean
    assert {s.noise for s in noisy.train} == ({"none"} if kind == "none" else {kind, "none"})


def test_phi_decides_for_each_sample_by_itself() -> None:
    sizes = {phi: {s.id for s in build(phi=phi, size=2000).train if s.noise != "none"} for phi in (0.0, 0.3, 0.8, 1.0)}
    assert sizes[0.0] == set()
    assert sizes[0.3] < sizes[0.8] < sizes[1.0]
    assert len(sizes[1.0]) == 2000
    # Three standard deviations of a binomial count.
    assert abs(len(sizes[0.3]) - 600) < 62
    assert abs(len(sizes[0.8]) - 1600) < 54


def test_a_samples_noise_depends_on_seed_epoch_and_id_only() -> None:
    whole = {s.id: s for s in build(size=300).train}
    part = build(size=100).train
    assert all(whole[s.id] == s for s in part)
    assert build(seed=43).train != build(seed=42).train
    assert build(epoch=1).train != build(epoch=0).train


def test_the_folder_holds_what_memory_would(tmp_path: Path) -> None:
    on_disk, in_memory = build(tmp_path), build()
    for split in SPLITS:
        assert list(getattr(on_disk, split)) == list(getattr(in_memory, split))
        lines = (tmp_path / f"{split}.jsonl").read_bytes().splitlines(keepends=True)
        assert [Sample.from_json(line) for line in lines] == list(getattr(in_memory, split))
        facts = on_disk.manifest["outputs"][f"{split}.jsonl"]
        assert facts == {"sha256": sha256(b"".join(lines)).hexdigest(), "lines": len(lines)}
    assert on_disk.beta == in_memory.beta == on_disk.manifest["distortion"]["beta"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dev.jsonl",
        "manifest.json",
        "test.jsonl",
        "train.jsonl",
    ]


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    noisy = build(tmp_path, kind="replacement", omega=0.3, phi=0.5)
    manifest = read_sealed(tmp_path / "manifest.json")
    assert manifest == noisy.manifest
    distances = Counter(s.distance for s in noisy.train if s.noise != "none")
    assert manifest["noise"] == {"kind": "replacement", "omega": 0.3, "phi": 0.5}
    assert manifest["seeds"] == {"run": 42, "epoch": 0}
    assert manifest["counts"]["noisy"] == distances.total()
    assert manifest["counts"]["noisy"] + manifest["counts"]["raw"] == 300
    assert manifest["distortion"]["d"] == {str(d): n for d, n in sorted(distances.items())}
    assert sum(manifest["distortion"]["d_prime"]) == distances.total()


def test_a_second_call_reads_what_is_there(tmp_path: Path) -> None:
    build(tmp_path)
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    build(tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"omega": 0.5}, {"seed": 7}, {"epoch": 1}, {"size": 301}, {"paraphrases": 1}])
def test_another_configuration_is_built_anew(change: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path)
    changed = build(tmp_path, **change)
    assert list(changed.train) == list(build(**change).train)


def test_labels_in_another_order_make_another_set(tmp_path: Path) -> None:
    told = load_instructions("sst2")
    turned = told.model_copy(update={"labels": dict(reversed(told.labels.items()))})

    def options(instructions: Instructions) -> str:
        recipe = Recipe(instructions, "detailed", NoiseConfig(), DistortionConfig(), seed=42)
        return build_noisy_set(corpus(), recipe, out=tmp_path).train[0].options

    assert options(told) != options(turned) and options(told) != options(turned)


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    build(tmp_path)
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b"rubbish\n")
    assert list(build(tmp_path).train) == list(build().train)


@pytest.mark.parametrize("normalise", rows(["length", "minmax"], quick=["minmax"]))
def test_parts_and_workers_make_no_difference(normalise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build(normalise=normalise)
    monkeypatch.setattr(parts, "PART_SIZE", 64)
    for workers in (1, 2):
        made = build(tmp_path / str(workers), normalise=normalise, workers=workers)
        assert list(made.train) == list(reference.train)
        assert made.beta == pytest.approx(reference.beta, abs=1e-15)


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 50)
    original, made = parts.training_samples, []

    def counted(maker: Any, examples: Any, tally: Any) -> Any:
        made.append(len(examples))
        for number, sample in enumerate(original(maker, examples, tally)):
            if len(made) == 4 and number == 20:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(parts, "training_samples", counted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, workers=1)
    assert not (tmp_path / "manifest.json").exists()
    noisy = build(tmp_path, workers=1)
    assert len(made) == 4 + 3  # three parts were complete, three were missing
    assert list(noisy.train) == list(build().train)


@pytest.mark.parametrize("kind", NOISES)
def test_robustness_splits_bend_every_instruction(kind: str) -> None:
    clean = build().test
    opposites = load_instructions("sst2").opposites("detailed")
    noisy = noisy_split(clean, kind, 0.2, 1, opposites=opposites)
    assert [s.id for s in noisy] == [s.id for s in clean]
    assert all(s.noise == kind and s.distance > 0 and 0 < s.distortion <= 1 for s in noisy)
    assert all(s.instruction != s.raw_instruction == c.instruction for s, c in zip(noisy, clean, strict=True))
    assert noisy == noisy_split(clean, kind, 0.2, 1, opposites=opposites)
    assert noisy_split(clean[:5], kind, 0.2, 1, opposites=opposites) == noisy[:5] or kind == "padding"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        build(tmp_path / "file" / "data")


def test_building_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom anit_ds.data.noise import build_noisy_set\nfrom anit_ds.data.corpora import load_corpus\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules and 'openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
