"""Seconds of `fercache extract` over many clips that are all stored, and of a run with work until its first clip.

    python tests/bench/bench_noop.py [--clips 1000] [--rounds 3] [--bytes 100000] [--weights DIR]

The clips are files of zeros, and their features are zeros of one small tap: neither is read. Times of commands
are of new processes, the least of some rounds; beside them are those of an interpreter that ends at once and of one
that imports the same modules. Opened files are counted by an audit hook in a process of their own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fercache.backbones import weights
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import load_dataset
from fercache.extraction import job
from fercache.media.source import file_digest
from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 1
TAPS = {"embedding": (512,)}
EXTRACT = ["extract", "--clips", "clips", "--taps", "embedding"]
COUNT = """
import sys
opened = {"clips": 0, "cache/features": 0}
def count(event, values):
    if event == "open":
        for folder in opened:
            opened[folder] += f"{folder}/" in str(values[0])
sys.addaudithook(count)
from fercache.cli import main
try:
    main(sys.argv[1:])
finally:
    print(opened)
"""
START = """
import sys, time
began = time.perf_counter()
from pathlib import Path
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import load_dataset
from fercache.extraction import job
opened = 0
def count(event, values):
    global opened
    opened += event == "open" and "clips/" in str(values[0])
sys.addaudithook(count)
def engine(run, trials):
    run.log_size(trials)
    print(f"{time.perf_counter() - began:.2f} s, {opened} clips opened")
    return map(run.pending, ())
imported = time.perf_counter() - began
job.extract_dataset(load_dataset(DatasetConfig(clips="clips", name="other"), Path("cache")),
                    ExtractConfig(taps=("embedding",)), Path("cache"), engine=engine)
print(f"of them {imported:.2f} s of imports")
"""


def make(clips: int, size: int) -> None:
    """Make clips, and a store that holds all of them, in the current folder."""
    Path("clips").mkdir()
    for i in range(clips):
        path = Path(f"clips/clip_{i:05d}.mp4")
        path.write_bytes(b"%09d" % i)
        os.truncate(path, size)  # takes no room on most disks
    dataset, config = load_dataset(DatasetConfig(clips="clips"), Path("cache")), ExtractConfig(taps=tuple(TAPS))
    faces = job.resolve_faces(dataset, config)
    settings = job.settings_of(config, faces, weights.ensure_weights(config.weights, Path("cache/weights")))
    store = EmbeddingStore.create(job.store_path(Path("cache"), dataset.name, settings), settings, TAPS)
    fsync, atomic_io.fsync = atomic_io.fsync, lambda path: None  # 39,000 clips would take minutes
    for trial in dataset.trials:
        with store.writer(trial.name, source=file_digest(trial.path, strict=True), provenance={"device": "cpu"}) as one:
            assert one is not None
            one.set_frame_table(np.zeros((FRAMES, len(FRAME_COLUMNS))))
            one.write(0, {tap: np.zeros((FRAMES, *shape), np.float16) for tap, shape in TAPS.items()})
            one.commit()
    atomic_io.fsync = fsync


def seconds(command: list[str], rounds: int) -> str:
    """Return the least seconds of a command, of the clock and, which other work changes less, of the processor."""
    clock, processor = [], []
    for _ in range(rounds):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        clock.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return f"{min(clock):.2f} s (processor {min(processor):.2f})"


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("clips", 1000), ("rounds", 3), ("bytes", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", type=Path, default=ROOT / "cache/weights", help="where weights are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fercache-bench-") as folder:
        os.chdir(folder)
        Path("cache").mkdir()
        Path("cache/weights").symlink_to(given.weights.resolve())
        make(given.clips, given.bytes)
        python, command = [sys.executable, "-c"], [sys.executable, "-m", "fercache", *EXTRACT]
        print(f"{given.clips} clips; first run: {seconds(command, 1)}")
        print(f"nothing to do: {seconds(command, given.rounds)}; an interpreter {seconds([*python, 'pass'], 3)}, with "
              f"the imports {seconds([*python, 'import fercache.cli.pipeline, fercache.extraction.job'], 3)}")
        done = subprocess.run([*python, COUNT, *EXTRACT], check=False, capture_output=True, text=True)
        print(f"files opened: {done.stdout.splitlines()[-1]}")
        done = subprocess.run([*python, START], check=True, capture_output=True, text=True)
        print(f"until the first clip of a run with work: {', '.join(done.stdout.splitlines())}")
        os.chdir("/")


if __name__ == "__main__":
    main()
