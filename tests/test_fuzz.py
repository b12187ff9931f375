"""Mutated videos, pictures and cache files: no traceback, no hang, no misnumbered row, memory bounded."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from books import simulate
from forked import Runner
from PIL import Image
from test_store import PROVENANCE, SETTINGS, SOURCE, TAPS, features, mutated, put
from videos import BITS, CELL, numbered_video, packets_of, picture

from fercache import media
from fercache.data import demo
from fercache.errors import ClipError
from fercache.store.embedding_store import EmbeddingStore

FRAMES = 12
CASE_S = 60.0
"""Longest that one mutated file may take, on a busy machine."""
PEAK_MB = 1500
"""What the largest picture that is read (64 megapixels) needs, decoder's copies included."""
VIDEOS = {"h264.mp4": "libx264", "mjpeg.avi": "mjpeg", "mpeg4.mkv": "mpeg4", "h264.ts": "libx264", "mjpeg.mov": "mjpeg"}


def meddle(data: bytes, rng: random.Random, spots: range | None = None) -> bytes:
    """Return bytes with some flipped, overwritten, cut off, doubled, or with a huge number put in."""
    made, within = bytearray(data), spots or range(len(data))
    way = rng.randrange(3 if spots else 6)
    for _ in range(rng.choice((1, 1, 4, 30))):
        at = rng.choice(within)
        if way == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            made[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        elif way == 2:
            stop = min(at + rng.randrange(1, 64), within.stop)
            made[at:stop] = bytes([rng.choice((0, 0xFF))]) * (stop - at)
    if way == 3:
        return bytes(made[:rng.randrange(len(made))])
    if way == 4:
        at, size = rng.randrange(len(made)), rng.randrange(1, 200)
        return bytes(made[:at] + made[at:at + size] * rng.randrange(2, 20) + made[at:])
    if way == 5:
        at = rng.randrange(0, max(len(made) - 8, 1))
        made[at:at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 4, b"\x80\x00\x00\x01"))
    return bytes(made)


@dataclass(frozen=True)
class Look:
    """What came of one file: rows that show another number than their own, unless the row says that it is damaged."""

    refused: bool
    rows: int
    wrong: int
    seconds: float
    peak_mb: float


def look(path: str) -> Look:
    """Read a clip to its end, in a process of its own."""
    began, rows, wrong, last, refused = time.monotonic(), 0, 0, -1.0, False
    Path("/proc/self/clear_refs").write_text("5")  # a forked process begins with the peak of the one it came from
    held_mb = memory_mb("VmRSS")
    try:
        kind = "crops" if Path(path).is_dir() else "video"
        for frame in media.open_source(Path(path), kind).frames():
            rows += 1
            assert frame.index == rows and frame.time_s > last, f"{path}: row {frame.index} at {frame.time_s}"
            last = frame.time_s
            shows = clear_number(frame.image) if frame.image is not None and not frame.damaged else None
            wrong += shows not in (None, rows)
    except ClipError:
        refused = True
    return Look(refused, rows, wrong, time.monotonic() - began, memory_mb("VmHWM") - held_mb)


def memory_mb(what: str) -> float:
    """Return one of the sizes that the kernel states of this process."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(what))


def clear_number(image: np.ndarray) -> int | None:
    """Return the number that a picture shows beyond doubt: every cell plainly black or white."""
    if image.shape[0] < 16 or image.shape[1] < BITS * CELL:
        return None
    cells = [image[4:12, bit * CELL + 2:(bit + 1) * CELL - 2] for bit in range(BITS)]
    if any(cell.std() > 12 or 60 < cell.mean() < 195 for cell in cells):
        return None
    return sum(1 << bit for bit, cell in enumerate(cells) if cell.mean() > 127)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files to mutate: five containers and codecs, a folder of crops."""
    folder = tmp_path_factory.mktemp("seeds")
    for name, codec in VIDEOS.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        numbered_video(folder / name, FRAMES, codec=codec, pix_fmt=pix_fmt)
    (folder / "crops").mkdir()
    for number in range(1, 4):
        Image.fromarray(picture(number)).save(folder / "crops" / f"{number:05d}.{'png' if number == 3 else 'jpg'}",
                                              exif=Image.Exif() if number == 1 else b"")
    return folder


def payload(path: Path) -> range:
    """Return where the bytes of the last packets lie: damage there moves no row."""
    start, size, _ = packets_of(path)[FRAMES // 2]
    return range(start + size // 3, start + size)


def cases(seeds: Path, folder: Path, times: int) -> Iterator[tuple[Path, bool]]:
    """Yield mutated clips, and whether only picture data was touched."""
    rng = random.Random(2)
    for i in range(times):
        if i % 3 == 2:
            made = folder / f"{i:04d}"
            shutil.copytree(seeds / "crops", made)
            one = rng.choice(sorted(made.iterdir()))
            one.write_bytes(meddle(one.read_bytes(), rng))
            yield made, True
        else:
            seed = seeds / rng.choice(sorted(VIDEOS))
            inner = i % 2 == 0 and seed.name.startswith("mjpeg")
            made = folder / f"{i:04d}-{seed.name}"
            made.write_bytes(meddle(seed.read_bytes(), rng, payload(seed) if inner else None))
            yield made, inner


@pytest.mark.timeout(3600)
def test_mutated_clips(seeds: Path, tmp_path: Path, full: bool) -> None:
    times = 1000 if full else 90
    found: list[Look] = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(look, (str(seeds / "h264.mp4"),)).rows == FRAMES
        for path, inner in cases(seeds, tmp_path, times):
            said = pool.apply_async(look, (str(path),)).get(timeout=CASE_S)  # a hang is a failure
            assert not (inner and said.wrong), f"{path}: {said.wrong} rows show another frame"
            assert said.peak_mb < PEAK_MB, f"{path}: {said.peak_mb:.0f} MB"
            found.append(said)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused = sum(said.refused for said in found)
    assert times // 10 < refused < times, "some are beyond reading, and some are not"
    print(f"{times} mutated clips: {refused} refused, {sum(said.wrong for said in found)} rows of clips with a mutated "
          f"container show another frame, slowest {max(s.seconds for s in found):.2f} s, "
          f"peak {max(s.peak_mb for s in found):.0f} MB")


@pytest.mark.timeout(3600)
def test_mutated_clips_at_the_command_line(seeds: Path, tmp_path: Path, weights_at: Path, runner: Runner,
                                           full: bool) -> None:
    """Each is in the store or in failures.csv, and the run says so."""
    times, tiny = (150, ()) if full else (9, ("cnn",))
    for kind in (False, True):
        work = tmp_path / f"work{kind}"
        (work / "clips").mkdir(parents=True)
        (work / "cache").mkdir()
        (work / "cache" / "weights").symlink_to(weights_at)
        made = [path for path, _ in cases(seeds, work / "clips", times)]
        names = {path.stem for path in made if path.is_dir() == kind}
        for path in made:
            if path.is_dir() != kind:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = runner.run("extract", "--clips", "clips", "--faces", "cropped", "--taps", "block8", "--threads", 1,
                         cwd=work, tiny=tiny)
        assert run.code in (0, 1) and "Traceback" not in run.err(), run.err()
        failed = (work / run.out().strip()).parent / "failures.csv"
        listed = failed.read_text().count("\n") if failed.exists() else 0
        (root,) = (work / "cache" / "features").glob("*/*.zarr/")
        stored = {path.name for path in root.iterdir() if (path / "zarr.json").exists()}
        assert stored <= names and names - stored == {n for n in names if listed and n in failed.read_text()}
        assert run.code == (1 if listed else 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path, weights_at: Path) -> Path:
    """A working folder whose cache holds something of every stage, and a recipe that names the data set."""
    work = tmp_path_factory.mktemp("whole") / "work"
    features_ = work / "cache" / "features" / "demo"
    store = EmbeddingStore.create(features_ / "casia-1.zarr", SETTINGS, TAPS)
    put(store, "a", 20)
    with store.writer("b", source=SOURCE, provenance=PROVENANCE) as writer:
        writer.set_frame_table(features(20)[0])
    (features_ / "current.json").write_text('{"store": "casia-1.zarr"}')
    (features_ / "failures.csv").write_text('clip,message\n"d,d",bad\n')
    simulate(groups=2, frames=10).save(work / "cache" / "logits" / "demo" / "b1.h5")
    (work / "cache" / "logits" / "demo" / "current.json").write_text('{"logits_file": "b1.h5"}')
    for stage in ("heads", "stack"):
        (work / "cache" / stage / "demo" / "b1").mkdir(parents=True)
        (work / "cache" / stage / "demo" / "b1" / "said.json").write_text(json.dumps({"trained_on": ["a", "b"]}))
    for folder in (demo.fetch_demo_clips(cache / "clips"), weights_at):
        (work / "cache" / folder.name).symlink_to(folder)
    return work


COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "features": (("info", "--list"), ("verify", "--repair"), ("gc",), ("forget", "a")),
    "logits": (("stack", "--bootstrap", "0"), ("gc", "--all", "--json"), ("forget", "video00000")),
    "heads": (("forget", "b"),), "stack": (("forget", "b"),)}


def change(path: Path, rng: random.Random) -> None:
    """Mutate one metadata file: as bytes, or as JSON that still is JSON."""
    data = path.read_bytes()
    meaning: Callable[[], bytes] | None = None
    if path.suffix == ".json":
        def meaning() -> bytes:
            return json.dumps(mutated(json.loads(data), rng)).encode()
    path.write_bytes(meaning() if meaning and rng.random() < .5 else meddle(data, rng) if data else b"\x00")


@pytest.mark.timeout(3600)
def test_mutated_cache_files_at_the_command_line(whole: Path, tmp_path: Path, runner: Runner, full: bool) -> None:
    times = 1000 if full else 24
    rng, codes = random.Random(4), Counter[int | None]()
    files = sorted(path.relative_to(whole) for stage in COMMANDS for path in (whole / "cache" / stage).rglob("*")
                   if path.is_file() and path.suffix in (".json", ".csv", ".h5", ".journal"))
    assert len(files) >= 10
    for i in range(times):
        work = tmp_path / str(i)
        shutil.copytree(whole, work, symlinks=True)
        one = rng.choice(files)
        change(work / one, rng)
        for words in COMMANDS[one.parts[1]]:
            run = runner.start(*words, "--dataset", "demo", cwd=work, memory=8 << 30) if words[0] != "forget" else (
                runner.start(*words, cwd=work, memory=8 << 30))
            run.wait(CASE_S)
            assert run.code in (0, 1, 2) and "Traceback" not in run.err(), f"{i} {one} {words}: {run.err()}"
            codes[run.code] += 1
        shutil.rmtree(work)
    print(f"{times} mutated cache files, {sum(codes.values())} commands: exit codes {dict(codes)}, no traceback")
