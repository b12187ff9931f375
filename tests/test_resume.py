"""A writer that is killed anywhere and started again leaves the bytes of one that was never disturbed.

Run as a program (``python test_resume.py STORE``) this file is the writer.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Runner

from fercache.runtime import atomic_io
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.journal import Journal, SegmentRecord
from fercache.store.layout import FRAME_COLUMNS, SEGMENT

TAPS = {"block8": (48,), "repeat_1-3x3": (2, 3, 3)}
SETTINGS = {"backbone": "casia"}
SOURCE = {"size": 10, "mtime_ns": 1, "sha256": "ab"}
PROVENANCE = {"device": "cpu", "threads": 2}
FRAMES = {"video": 2500, "crops": 1100, "short": 40, "changed": 300, "elsewhere": 1500}
BATCH = 600
NOBODY = 65534


def clock_of(clip: str) -> np.ndarray:
    rng = np.random.default_rng(FRAMES[clip])
    return np.column_stack([np.arange(1, FRAMES[clip] + 1), rng.normal(size=(FRAMES[clip], len(FRAME_COLUMNS) - 1))])


def segment_of(clip: str, start: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([FRAMES[clip], start])
    rows = min(SEGMENT, FRAMES[clip] - start)
    return {tap: rng.normal(size=(rows, *shape)).astype(np.float16) for tap, shape in TAPS.items()}


def write(store: EmbeddingStore, clip: str, until: int = sys.maxsize) -> int:
    """Write a clip as stage one does, `until` a row, else to the commit; return how many rows were there before."""
    with store.writer(clip, source=SOURCE, provenance=PROVENANCE) as writer:
        if writer is None:
            return -1
        found = writer.written
        if clip != "crops":
            for start in range(writer.detected, FRAMES[clip], BATCH):
                stop = min(start + BATCH, FRAMES[clip])
                writer.keep_detections(stop, np.full((stop - start, 6), start, float))
            assert len(writer.detections()) == FRAMES[clip]
            if writer.frame_table is None:
                writer.set_frame_table(clock_of(clip))
        for start in range(writer.written, min(FRAMES[clip], until), SEGMENT):
            writer.write(start, segment_of(clip, start))
        if until > FRAMES[clip]:
            if clip == "crops":
                writer.set_frame_table(clock_of(clip))
            writer.commit()
    return found


def work(path: Path) -> dict[str, int]:
    """Do everything that changes a store."""
    store = EmbeddingStore.create(path, SETTINGS, TAPS)
    store.remove("gone")
    return {clip: write(store, clip) for clip in FRAMES}


def prepare(path: Path) -> None:
    """Make the store that the writer finds: a clip to remove, one of another source, one begun on another device."""
    store = EmbeddingStore.create(path, SETTINGS, TAPS)
    for clip, source, provenance in (("gone", SOURCE, PROVENANCE), ("changed", {"size": 11}, PROVENANCE),
                                     ("elsewhere", SOURCE, {"device": "cuda"})):
        with store.writer(clip, source=source, provenance=provenance) as writer:
            writer.set_frame_table(clock_of("elsewhere"))
            writer.write(0, segment_of("elsewhere", 0))
            if clip != "elsewhere":
                writer.write(1024, segment_of("elsewhere", 1024))
                writer.commit()


def tree(path: Path) -> dict[str, bytes]:
    """Return every file of a store and of its work folder."""
    work = path.with_suffix(".work")
    return {str(p.relative_to(path.parent)).replace(path.stem, "store"): p.read_bytes()
            for folder in (path, work) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder / "s.zarr")
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of a writer that nothing disturbs, and the durable steps it passed."""
    folder = tmp_path_factory.mktemp("unbroken") / "s"
    shutil.copytree(prepared, folder)
    passed: Counter[str] = Counter()
    order: list[str] = []

    def note(name: str) -> None:
        passed[name] += 1
        order.append(f"{name}:{passed[name]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic_io, "durable_step", note)
        work(folder / "s.zarr")
    return tree(folder / "s.zarr"), order


@pytest.fixture
def store(tmp_path: Path, prepared: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "s")
    return tmp_path / "s" / "s.zarr"


def start(path: Path, **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(atomic_io.__file__).parents[2]), **environment}
    return subprocess.Popen([sys.executable, __file__, str(path)], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def run(runner: Runner, path: Path, kill_at: str = "", **how: Any) -> int:
    """Return how the writer ends in a forked process; it may be killed at a durable step."""
    code = runner.run(path, cwd=path.parent, kill_at=kill_at, small=False, program="test_resume", **how).code
    assert code is not None
    return code


def check_resumed(path: Path, unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    """Every clip is complete or absent; run again, the files are the unbroken run's."""
    found = EmbeddingStore.open(path)
    for clip in found:
        assert found[clip].read("block8").shape == (found[clip].frames, 48)
    work(path)
    resumed = tree(path)
    assert resumed.keys() == unbroken[0].keys()
    assert [key for key in resumed if resumed[key] != unbroken[0][key]] == []


def points(order: list[str], each: int) -> list[str]:
    """Return the first `each` passages of every step, and the last one."""
    last = {step.split(":")[0]: step for step in order}
    return [step for step in order if int(step.split(":")[1]) <= each or last[step.split(":")[0]] == step]


def test_there_are_many_named_steps(unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    assert len({step.split(":")[0] for step in unbroken[1]}) >= 18


def kill_everywhere(runner: Runner, prepared: Path, folder: Path, steps: list[str],
                    unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    for step in steps:
        shutil.copytree(prepared, folder / step)
        path = folder / step / "s.zarr"
        assert run(runner, path, step) == -signal.SIGKILL, step
        check_resumed(path, unbroken)
        shutil.rmtree(folder / step)


def test_killed_at_each_durable_step(runner: Runner, prepared: Path, tmp_path: Path,
                                     unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    """Each name once, at a passage drawn by chance from a fixed seed."""
    names: dict[str, list[str]] = {}
    for step in unbroken[1]:
        names.setdefault(step.split(":")[0], []).append(step)
    rng = random.Random(3)
    kill_everywhere(runner, prepared, tmp_path, [rng.choice(steps) for steps in names.values()], unbroken)


@pytest.mark.slow("hundreds of kills; each step is killed once always")
def test_killed_at_every_passage(runner: Runner, prepared: Path, tmp_path: Path,
                                 unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    kill_everywhere(runner, prepared, tmp_path, unbroken[1], unbroken)


def test_killed_again_and_again(runner: Runner, store: Path, unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    """Every start dies at its fourth chunk, or at its second journal line: it gets there all the same."""
    for _ in range(60):
        for step in ("chunk.torn:30", "segment.journaled:2"):
            code = run(runner, store, step)
            assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    check_resumed(store, unbroken)
    assert code == 0


def kill_at_random(prepared: Path, folder: Path, times: int, number: signal.Signals,
                   unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    shutil.copytree(prepared, folder / "whole")
    process = start(folder / "whole" / "s.zarr")
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.communicate()
    lasts = time.monotonic() - began
    rng = random.Random(5)
    for i in range(times):
        path = folder / str(i) / "s.zarr"
        shutil.copytree(prepared, path.parent)
        process = start(path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, lasts))
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 130, -number), errors  # -number: the last moments of the interpreter
        check_resumed(path, unbroken)
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_random_moments(prepared: Path, tmp_path: Path, number: signal.Signals,
                                  unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    kill_at_random(prepared, tmp_path, 4, number, unbroken)


@pytest.mark.slow("fifty kills; four of each signal run always")
def test_killed_at_fifty_random_moments(prepared: Path, tmp_path: Path,
                                        unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    kill_at_random(prepared, tmp_path, 50, signal.SIGKILL, unbroken)


@pytest.mark.parametrize("segments", [1, 2])
def test_only_the_open_segment_is_lost(runner: Runner, store: Path, segments: int) -> None:
    assert run(runner, store, f"segment.journaled:{segments}") == -signal.SIGKILL
    again = EmbeddingStore.open(store, mode="a")
    assert write(again, "video", until=0) == segments * SEGMENT
    journal = Journal.open(store.with_suffix(".work") / "video.journal")
    assert sum(isinstance(record, SegmentRecord) for record in journal.records) == segments


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_files_hit_a_size_limit(runner: Runner, store: Path, limit: int,
                                unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    assert run(runner, store, file_bytes=limit) == 1
    check_resumed(store, unbroken)


def test_the_disk_fills_up(runner: Runner, prepared: Path, unbroken: tuple[dict[str, bytes], list[str]],
                           tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1250k", "tmpfs", str(mounted)], check=True,
                       capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system to fill: mounting one is not allowed here ({error})")
    try:
        shutil.copytree(prepared, mounted / "s")
        path = mounted / "s" / "s.zarr"
        for size in (1250, 1300, 1350):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(mounted)], check=True)
            assert run(runner, path) == 1, "the disk was meant to be too small"
            list(EmbeddingStore.open(path).values())
        subprocess.run(["mount", "-o", "remount,size=50m", str(mounted)], check=True)
        check_resumed(path, unbroken)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user of the machine may enter (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="fercache-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_permission_taken_away(runner: Runner, prepared: Path, open_folder: Path,
                               unbroken: tuple[dict[str, bytes], list[str]]) -> None:
    shutil.copytree(prepared, open_folder / "s")
    path = open_folder / "s" / "s.zarr"
    assert run(runner, path, "segment.journaled:1") == -signal.SIGKILL
    everything = [path, *path.rglob("*")]
    modes = {p: p.stat().st_mode for p in everything}
    try:
        for p in everything:
            p.chmod(0o555 if p.is_dir() else 0o444)
        path.with_suffix(".work").chmod(0o777)
        for p in path.with_suffix(".work").iterdir():
            p.chmod(0o666)
        assert run(runner, path, user=NOBODY if os.geteuid() == 0 else 0) == 1
    finally:
        for p, mode in modes.items():
            if p.exists():
                p.chmod(mode)
    check_resumed(path, unbroken)


def main(words: Sequence[str]) -> int:
    """Be the writer: print a line when work begins; 130 when stopped by a signal, 1 when the disk says no."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print("begin", flush=True)
        work(Path(words[0]))
    except KeyboardInterrupt:
        return 130
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
