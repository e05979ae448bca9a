"""How fast a noisy set is made, scored and written, and what it costs in memory; rule-based scoring by itself.

    python benchmarks/noise.py                      # 1,000,000 samples on one core and on two
    python benchmarks/noise.py --samples 100000 --json results/noise.json

Prints a table; with --json also writes it. Peak memory is the largest resident set of the building process and of
its largest worker, at a tenth of the size and at the full size: it must not grow. CPU seconds are those of the
building process and its workers, imports included; on a machine that other work shares they are the figure to read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import median_ms, show, time_of, write_json

from anit_ds.config import DistortionConfig, NoiseConfig
from anit_ds.data.corpora import Corpus
from anit_ds.data.distortion import measure
from anit_ds.data.examples import Example
from anit_ds.data.instructions import load_instructions
from anit_ds.data.noise import Recipe, build_noisy_set
from anit_ds.data.noise.vocabulary import english_vocabulary
from anit_ds.data.recordfile import RecordFile


def write_examples(path: Path, count: int, prefix: str) -> RecordFile[Example]:
    """Classification examples of 10 to 30 dictionary words, in a file."""
    rng, words = random.Random(0), english_vocabulary()
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            text = " ".join(rng.choices(words, k=rng.randrange(10, 31)))
            file.write(Example(f"{prefix}/{i}", text, ((str(i % 2),),)).to_json() + "\n")
    return RecordFile(path, Example.from_json)


def build(folder: Path, samples: int, workers: int, result: Any) -> None:
    """One build in this process; puts seconds, peak memory in MB and the manifest's beta into `result`."""
    train = RecordFile(folder / f"train-{samples}.jsonl", Example.from_json)
    corpus = Corpus("sst2", "classification", train, train[:100], train[:100])
    noise = NoiseConfig(kind="replacement", omega=0.2, phi=0.8)
    recipe = Recipe(load_instructions("sst2"), "detailed", noise, DistortionConfig(), seed=42)
    out = folder / f"out-{samples}-{workers}"
    made = []

    def build_set() -> None:
        made.append(build_noisy_set(corpus, recipe, out=out, workers=workers).beta)

    seconds = time_of(build_set).wall
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result.put(
        {
            "seconds": seconds,
            "cpu_seconds": sum(used.ru_utime + used.ru_stime for used in (own, children)),
            "peak_mb": own.ru_maxrss / 1024,
            "worker_mb": children.ru_maxrss / 1024,
            "beta": made[0],
        }
    )
    shutil.rmtree(out)


def measured_build(folder: Path, samples: int, workers: int) -> dict[str, Any]:
    """A build in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=build, args=(folder, samples, workers, result))
    process.start()
    row = result.get()
    process.join()
    return {"samples": samples, "workers": workers, "per_second": samples / row["seconds"], **row}


def textbook_distance(first: list[str], second: list[str]) -> int:
    """Word-level Levenshtein distance by the plain dynamic programme."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def microseconds(call: Callable[[], object], repeats: int) -> float:
    """The median over five rounds, in microseconds per call."""

    def several() -> None:
        for _ in range(repeats):
            call()

    return 1000 * median_ms(several, repeats=5) / repeats


def scoring() -> dict[str, float]:
    """Rule-based scoring of one 50-word instruction with 10 words replaced, splitting included."""
    raw = load_instructions("sst2").first("detailed")
    words = raw.split()
    noisy_words = [f"other{i}" if i % 5 == 0 else word for i, word in enumerate(words)]
    noisy = " ".join(noisy_words)
    fast = microseconds(lambda: measure(noisy, raw), 20_000)
    plain = microseconds(lambda: textbook_distance(noisy_words, words), 200)
    return {"rapidfuzz_us": fast, "plain_python_us": plain, "times_faster": plain / fast}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = [arguments.samples // 10, arguments.samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            write_examples(folder / f"train-{size}.jsonl", size, "sst2/train")
        rows = [measured_build(folder, size, workers) for workers in arguments.workers for size in sizes]
    show(rows)
    distance = scoring()
    fast, plain, times = distance.values()
    print(f"rule-based scoring: {fast:.1f} us a sample, plain Python {plain:.0f} us, {times:.0f} times faster")
    if arguments.json:
        write_json(arguments.json, {"builds": rows, "scoring": distance})


if __name__ == "__main__":
    main()
