"""Write, preload and window reads of the store beside a raw .npy memory map and HDF5, in one run.

    python tests/bench/bench_store.py [--frames 20000] [--width 2688] [--clips 20] [--windows 500] [--rounds 1]
                                      [--folder DIR] [--weights DIR] [--no-cnn] [--readers N]

The stated volume is ``--frames 280000`` (1.5 GB, three times over), or ``--frames 2800000 --width 512``.
``--frames 146000 --clips 2000`` tells what short clips cost. What the CNN yields is measured in the same run, with the
taps of that width, so that "never the bottleneck" is a ratio of two figures of one machine; ``--no-cnn`` leaves it out.
"preload" reads clip after clip into memory that is in use; "train" is what `train-heads` does before it trains, with
``--readers`` threads if given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from fercache.data.base import Trial
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import CHUNK, FRAME_COLUMNS, SEGMENT
from fercache.training import data as training

WINDOW = 64
CNN_TAPS = {512: ("embedding",), 2688: ("block8", "repeat_2")}
"""Width -> the taps that make it; any other width is timed with those of 2,688."""
CNN_FRAMES = 192
WEIGHTS = Path(__file__).resolve().parents[2] / "cache" / "weights"
MB = 1e6


@dataclass
class Bench:
    """One volume of float16 features, written and read three ways."""

    folder: Path
    frames: int
    width: int
    clips: int
    windows: int
    lengths: list[int] = field(init=False)
    x: np.ndarray | None = None
    loaded: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.lengths = [self.frames // self.clips + (i < self.frames % self.clips) for i in range(self.clips)]
        self.block = np.random.default_rng(0).normal(size=(SEGMENT, self.width)).astype(np.float16)
        rng = np.random.default_rng(1)
        picked = rng.integers(self.clips, size=self.windows)
        self.starts = [(int(c), int(rng.integers(max(self.lengths[c] - WINDOW, 0) + 1))) for c in picked]
        self.store, self.npy, self.h5 = (self.folder / name for name in ("bench.zarr", "bench.npy", "bench.h5"))

    def segments(self, length: int) -> list[tuple[int, int]]:
        return [(start, min(start + SEGMENT, length)) for start in range(0, length, SEGMENT)]

    def write_store(self) -> None:
        store = EmbeddingStore.create(self.store, {"bench": 1}, {"block8": (self.width,)})
        for i, length in enumerate(self.lengths):
            with store.writer(str(i), source={"size": i}, provenance={}) as writer:
                assert writer is not None
                writer.set_frame_table(np.zeros((length, len(FRAME_COLUMNS))))
                for start, stop in self.segments(length):
                    writer.write(start, {"block8": self.block[:stop - start]})
                writer.commit()
        list(store)
        store.write_index()  # as `fercache extract` ends

    def write_h5(self, every_segment: bool) -> None:
        with h5py.File(self.h5, "w") as file:
            for i, length in enumerate(self.lengths):
                data = file.create_dataset(str(i), (length, self.width), "<f2", chunks=(min(length, CHUNK), self.width))
                for start, stop in self.segments(length):
                    data[start:stop] = self.block[:stop - start]
                    if every_segment:
                        file.flush()
                        sync(self.h5)
        sync(self.h5)

    def write_npy(self) -> None:
        data = np.lib.format.open_memmap(self.npy, "w+", np.float16, (self.frames, self.width))
        row = 0
        for length in self.lengths:
            for start, stop in self.segments(length):
                data[row + start:row + stop] = self.block[:stop - start]
            row += length
        data.flush()
        sync(self.npy)

    def preload_store(self) -> None:
        store, x = EmbeddingStore.open(self.store), self.space()
        for i, (row, length) in enumerate(zip(self.offsets(), self.lengths, strict=True)):
            store[str(i)].read("block8", out=x[row:row + length])

    def preload_h5(self) -> None:
        x = self.space()
        with h5py.File(self.h5) as file:
            for i, (row, length) in enumerate(zip(self.offsets(), self.lengths, strict=True)):
                file[str(i)].read_direct(x, dest_sel=np.s_[row:row + length])

    def preload_npy(self) -> None:
        self.space()[:] = np.load(self.npy, mmap_mode="r")

    def training_store(self) -> None:
        """Read as `train-heads` does: frame tables and features of all clips, in a few threads, into new memory."""
        self.loaded = None  # frees the memory of the last turn
        trials = [Trial(name=str(i), path=Path(), kind="video", parent="", group="", split="train")
                   for i in range(self.clips)]
        self.loaded = training.load_features(EmbeddingStore.open(self.store), trials, ["block8"]).x

    def training_npy(self) -> None:
        self.loaded = None
        self.loaded = np.zeros((self.frames, self.width), np.float16)
        self.loaded[:] = np.load(self.npy, mmap_mode="r")

    def windows_store(self) -> None:
        store = EmbeddingStore.open(self.store)
        taps = [store[str(i)]["block8"] for i in range(self.clips)]
        for clip, start in self.starts:
            taps[clip][start:start + WINDOW]

    def windows_h5(self) -> None:
        with h5py.File(self.h5) as file:
            sets = [file[str(i)] for i in range(self.clips)]
            for clip, start in self.starts:
                sets[clip][start:start + WINDOW]

    def windows_npy(self) -> None:
        data, offsets = np.load(self.npy, mmap_mode="r"), self.offsets()
        for clip, start in self.starts:
            np.array(data[offsets[clip] + start:offsets[clip] + start + WINDOW])

    def offsets(self) -> list[int]:
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(int).tolist()

    def space(self) -> np.ndarray:
        """Return memory that the kernel has handed out already: page faults are no matter of the format."""
        if self.x is None:
            self.x = np.ones((self.frames, self.width), np.float16)
        return self.x

    def clean(self) -> None:
        """Remove what was written, and wait until the disk is idle."""
        shutil.rmtree(self.store, ignore_errors=True)
        for path in (self.npy, self.h5):
            path.unlink(missing_ok=True)
        os.sync()

    def cold(self) -> None:
        """Drop the files' pages from memory, as far as the kernel lets a user do it."""
        for path in [self.npy, self.h5, *(p for p in self.store.rglob("*") if p.is_file())]:
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


Clock = Callable[[], float]


def seconds(work: Callable[[], object], times: int = 1, before: Callable[[], object] = lambda: None,
            clock: Clock = time.perf_counter) -> float:
    """Return the median time of some runs; `before` is not counted."""
    return statistics.median(in_turn({"": work}, times, before, clock)[""])


def in_turn(ways: dict[str, Callable[[], object]], times: int, before: Callable[[], object] = lambda: None,
            clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Return the times of some runs of each way, one after the other, so that a busy machine is busy for all."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            before()
            started = clock()
            way()
            found[name].append(clock() - started)
    return found


def medians(ways: dict[str, Callable[[], object]], times: int, before: Callable[[], object] = lambda: None,
            clock: Clock = time.perf_counter) -> dict[str, float]:
    return {name: statistics.median(took) for name, took in in_turn(ways, times, before, clock).items()}


def cnn_fps(width: int, folder: Path) -> float:
    """Return the crops a second that the CNN embeds here, on all cores; the median of three turns."""
    from fercache.backbones import weights
    from fercache.backbones.backbone import Backbone
    from fercache.backbones.taps import CROP_PX
    from fercache.runtime.devices import resolve_device, set_torch_threads

    set_torch_threads(0)
    backbone = Backbone.load(weights.ensure_weights("casia-webface", folder), CNN_TAPS.get(width, CNN_TAPS[2688]),
                             device=resolve_device("auto"))
    crops = np.random.default_rng(2).integers(0, 256, (CNN_FRAMES, CROP_PX, CROP_PX, 3), np.uint8)
    backbone.embed(crops[:32])
    return CNN_FRAMES / seconds(lambda: backbone.embed(crops), 3)


def written(bench: Bench, rounds: int) -> dict[str, float]:
    """Return the median seconds of writing, the ways in turn, each on a clean folder."""
    ways = {"store": bench.write_store, "h5py": lambda: bench.write_h5(every_segment=True),
            "h5py, one fsync": lambda: bench.write_h5(every_segment=False), "npy": bench.write_npy}
    found = []
    for _ in range(rounds):
        bench.clean()
        found.append({name: seconds(way) for name, way in ways.items()})
    return {name: statistics.median(took[name] for took in found) for name in ways}


def line(title: str, took: dict[str, float], amount: float, unit: str, against: str) -> None:
    rates = "  ".join(f"{name} {amount / s:9.0f} {unit}" for name, s in took.items())
    print(f"{title:14s} {rates}   store / {against} = {took[against] / took['store']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("frames", 20_000), ("width", 2688), ("clips", 20), ("windows", 500), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where weights are kept")
    parser.add_argument("--no-cnn", action="store_true")
    parser.add_argument("--readers", type=int, default=training.READERS, help="threads of `train`")
    chosen = parser.parse_args()
    training.READERS = chosen.readers
    amount = chosen.frames * chosen.width * 2
    folder = Path(tempfile.mkdtemp(prefix="fercache-bench-", dir=chosen.folder))
    try:
        if shutil.disk_usage(folder).free < 4 * amount:
            parser.error(f"{4 * amount / MB:.0f} MB must be free in {folder}: choose --folder or fewer --frames")
        measure(Bench(folder, chosen.frames, chosen.width, chosen.clips, chosen.windows), amount, chosen.rounds,
                None if chosen.no_cnn else chosen.weights)
    finally:
        shutil.rmtree(folder)


def measure(bench: Bench, amount: int, rounds: int, weights: Path | None) -> None:
    print(f"{bench.frames} x {bench.width} float16 in {bench.clips} clips: {amount / MB:.0f} MB")
    took = written(bench, rounds)
    line("write", took, amount / MB, "MB/s", "h5py")
    line("", took, amount / MB, "MB/s", "h5py, one fsync")
    if weights is not None:
        rate, cnn = bench.frames / took["store"], cnn_fps(bench.width, weights)
        print(f"{'':14s} store {rate:.0f} frames/s = {rate / cnn:.0f} times the CNN's {cnn:.0f} frames/s", flush=True)
    bench.space()
    ways = {"store": bench.preload_store, "npy": bench.preload_npy, "h5py": bench.preload_h5}
    for title, before, times, clock in (
            ("preload, warm", lambda: None, 7, time.perf_counter),
            ("  its CPU time", lambda: None, 5, time.process_time),
            ("preload, cold", bench.cold, 3, time.perf_counter)):
        line(title, medians(ways, times, before, clock), amount / MB, "MB/s", "npy")
    bench.x = None
    training = {"store": bench.training_store, "npy": bench.training_npy}
    for title, before, clock in (("train, warm", lambda: None, time.perf_counter),
                                 ("  its CPU time", lambda: None, time.process_time),
                                 ("train, cold", bench.cold, time.perf_counter)):
        # The least of each: now and then the kernel spends more on finding so much new memory than reading takes.
        took = {name: min(each) for name, each in in_turn(training, 5, before, clock).items()}
        line(title, took, amount / MB, "MB/s", "npy")
    bench.training_store()
    assert bench.loaded is not None and (bench.loaded == np.load(bench.npy, mmap_mode="r")).all()
    bench.loaded = None
    reads = {"store": bench.windows_store, "npy": bench.windows_npy, "h5py": bench.windows_h5}
    line(f"windows of {WINDOW}", medians(reads, 3), bench.windows, "/s", "npy")
    size = EmbeddingStore.open(bench.store).size()
    print(f"on disk        store {size.bytes / MB:.1f} MB in {size.files} files ({size.files / bench.clips:.1f} a "
          f"clip, {size.bytes / amount:.3f} of the data)   npy {bench.npy.stat().st_size / MB:.1f} MB   "
          f"h5py {bench.h5.stat().st_size / MB:.1f} MB")


if __name__ == "__main__":
    main()
