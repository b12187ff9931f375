"""`fercache extract` itself, on real clips: killed, stopped, starved or shared, it ends with an unbroken run's arrays.

`test_resume` does the same to the store's writer alone, at every passage of every step. Here detector, CNN and command
line run too, in small: segments of 8 frames, so that a clip of 20 frames has three.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forked import SMALL, Run, Runner
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

from fercache import media
from fercache.data import demo
from fercache.store import layout
from fercache.store.embedding_store import EmbeddingStore

EXTRACT = ("extract", "--clips", "clips", "--taps", "block8,repeat_1-3x3", "--threads", 1)
CROPPED = ("extract", "--taps", "block8", "--threads", 1, "--clips")
NOBODY = 65534
CLIPS, FEW = 60, 12
Tiny = tuple[str, ...]
Unbroken = tuple[dict[str, bytes], list[str]]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Chunks as small here, where the stores are read, as in the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK", SMALL["CHUNK"])
        yield


@pytest.fixture(scope="module")
def pictures(cache: Path) -> list[NDArray[np.uint8]]:
    """Twenty real frames, (180, 320, 3), in which the face moves."""
    source = media.open_source(demo.fetch_demo_clips(cache / "clips") / "single_face.mp4", "video")
    frames = [frame.image for frame in source.pick(range(0, 60, 3)) if frame.image is not None]
    return [np.asarray(Image.fromarray(image).resize((320, 180))) for image in frames]


@pytest.fixture(scope="module")
def prepared(pictures: list[NDArray[np.uint8]], weights_at: Path) -> Iterator[Path]:
    """A folder with two videos, 60 folders of crops, and a cache that holds weights only; open to any user."""
    folder = Path(tempfile.mkdtemp(prefix="fercache-test-"))
    folder.chmod(0o755)
    (folder / "clips").mkdir()
    make_video(folder / "clips" / "long.mp4", pictures)
    make_video(folder / "clips" / "short.mp4", pictures[:5])
    for i in range(CLIPS):
        for crops in ("crops", "few")[:1 + (i < FEW)]:
            (folder / crops / f"{i:02d}").mkdir(parents=True)
            for number in range(1, 1 + (12 if i == 0 else 1)):
                face = pictures[(i + number) % 20][20:160, 90:230]
                Image.fromarray(np.roll(face, i, axis=1)).save(folder / crops / f"{i:02d}" / f"{number:05d}.jpg")
    (folder / "weights").mkdir()
    for path in weights_at.glob("casia*"):
        shutil.copy(path, folder / "weights")
    yield folder
    shutil.rmtree(folder)


def fresh(prepared: Path, name: str) -> Path:
    """Return a working folder with the clips and an empty cache."""
    folder = prepared / name
    (folder / "cache").mkdir(parents=True)
    folder.chmod(0o755)
    for inner in ("clips", "crops", "few"):
        (folder / inner).symlink_to(prepared / inner)
    (folder / "cache" / "weights").symlink_to(prepared / "weights")
    return folder


def store_of(folder: Path) -> EmbeddingStore:
    (path,) = (folder / "cache" / "features").glob("*/*.zarr")
    return EmbeddingStore.open(path)


def arrays(store: EmbeddingStore) -> dict[str, bytes]:
    """Return every array of every clip, and its mark: frames, digests, source and provenance."""
    held = {f"{clip}/{tap}": store[clip].read(tap).tobytes() for clip in store for tap in store[clip]}
    return held | {f"{clip}/frame_table": store[clip].frame_table.tobytes() for clip in store} | {
        f"{clip}/mark": store.manifest(clip).document() for clip in store}


def ended(run: Run, code: int, *words: str) -> None:
    """Check exit code and message."""
    assert run.code == code, run.err()
    assert "Traceback" not in run.err(), run.err()
    for word in words:
        assert word in run.err(), run.err()


@pytest.fixture(scope="module")
def tiny(full: bool) -> Tiny:
    """The nets that are tiny where a run dies at a step, and no clock decides; `make test-full` takes the real CNN."""
    return () if full else ("cnn",)


def disturbed_by_nothing(runner: Runner, folder: Path, tiny: Tiny = (), *more: str) -> Unbroken:
    """Return the arrays of a run in `folder`, and the durable steps that it passed."""
    run = runner.run(*EXTRACT, *more, cwd=folder, tiny=tiny)
    ended(run, 0, "2 clips computed (25 frames")
    store = store_of(folder)
    assert store["long"].frame_table["valid"].all() and not np.array_equal(store["long"]["block8"][0], np.zeros(1792))
    return arrays(store), run.steps()


@pytest.fixture(scope="module")
def unbroken(runner: Runner, prepared: Path, tiny: Tiny) -> Unbroken:
    """What a run leaves that nothing disturbs, with the nets of `tiny`."""
    return disturbed_by_nothing(runner, fresh(prepared, "unbroken"), tiny)


@pytest.fixture(scope="module")
def unbroken_real(runner: Runner, prepared: Path) -> Unbroken:
    """The same with the real nets."""
    return disturbed_by_nothing(runner, fresh(prepared, "unbroken-real"))


def test_people_of_a_clip_killed_between_them(runner: Runner, prepared: Path, tiny: Tiny,
                                              pictures: list[NDArray[np.uint8]]) -> None:
    """Two people: before detection is over, within the second, between the two, within the first. `#1` means both."""
    (prepared / "pair").mkdir()
    make_video(prepared / "pair" / "two.mp4", [np.concatenate([one, one[:, ::-1]], axis=1) for one in pictures[:16]])
    words = [*(word if word != "clips" else str(prepared / "pair") for word in EXTRACT), "--people", "all"]
    whole, folder = fresh(prepared, "pair-whole"), fresh(prepared, "pair-killed")
    ended(runner.run(*words, cwd=whole, tiny=tiny), 0, "1 clips computed")
    assert list(store_of(whole)) == ["two#1", "two#2"]
    for step in ("detections.kept:2", "frame_table.journaled:1", "segment.journaled:1", "commit.unmarked:1",
                 "commit.marked:1", "frame_table.written:1", "segment.journaled:1", "commit.unmarked:1"):
        assert runner.run(*words, cwd=folder, kill_at=step, tiny=tiny).code == -signal.SIGKILL, step
        assert "two#1" not in store_of(folder)
    ended(runner.run(*words, cwd=folder, tiny=tiny), 0, "1 clips computed")
    assert arrays(store_of(folder)) == arrays(store_of(whole))
    assert runner.run(*words, cwd=folder, tiny=tiny).err().count("0 clips computed") == 1


def check_whole(runner: Runner, folder: Path, unbroken: Unbroken, tiny: Tiny = (), *more: str) -> None:
    """Run again: 0 differences."""
    ended(runner.run(*EXTRACT, *more, cwd=folder, tiny=tiny), 0, "0 failed")
    found = arrays(store_of(folder))
    assert found.keys() == unbroken[0].keys()
    assert [key for key in found if found[key] != unbroken[0][key]] == []
    ended(runner.run("verify", "--clips", "clips", cwd=folder), 0)


def passages(steps: list[str]) -> list[str]:
    """Return the passages of steps as FERCACHE_KILL_AT names them."""
    passed: Counter[str] = Counter()
    found = []
    for step in steps:
        passed[step] += 1
        found.append(f"{step}:{passed[step]}")
    return found


def test_killed_again_and_again(runner: Runner, prepared: Path, unbroken: Unbroken, tiny: Tiny) -> None:
    """Within detection, within a segment, before the mark, and after it: one store, each time by the next run."""
    assert len(set(unbroken[1])) >= 12
    kill_at_steps(runner, fresh(prepared, "again"), unbroken, tiny)


@pytest.mark.parametrize("every", ["2", "auto"])
def test_killed_again_and_again_with_some_frames_embedded(runner: Runner, prepared: Path, every: str) -> None:
    """The same where the frame table names the embedded frames, and is written before the segments or after them."""
    more, tiny = ("--embed-every", every), ("cnn",)
    unbroken = disturbed_by_nothing(runner, fresh(prepared, f"every-{every}-whole"), tiny, *more)
    assert unbroken[1].count("segment.journaled") == 3, "two of long's, one of short's"
    kill_at_steps(runner, fresh(prepared, f"every-{every}"), unbroken, tiny, *more)


def kill_at_steps(runner: Runner, folder: Path, unbroken: Unbroken, tiny: Tiny, *more: str) -> None:
    """Kill one run after the other at six steps, and check what the last run leaves."""
    for step in ("replace.written:1", "detections.kept:2", "chunk.torn:5", "segment.journaled:1", "commit.unmarked:1",
                 "commit.marked:1"):
        assert runner.run(*EXTRACT, *more, cwd=folder, kill_at=step, tiny=tiny).code == -signal.SIGKILL, step
        if list((folder / "cache" / "features").glob("*/*.zarr/zarr.json")):
            assert not set(store_of(folder)) - {"long", "short"}
    check_whole(runner, folder, unbroken, tiny, *more)


@pytest.mark.slow("a run and a rerun at each of more than twelve steps; six run always")
@pytest.mark.timeout(3600)
def test_killed_at_every_named_step(runner: Runner, prepared: Path,
                                    unbroken: Unbroken) -> None:
    """Each name once, at a passage drawn by chance from a fixed seed."""
    rng = random.Random(11)
    names: dict[str, list[str]] = {}
    for passage in passages(unbroken[1]):
        names.setdefault(passage.split(":")[0], []).append(passage)
    assert len(names) >= 12
    for passage in (rng.choice(found) for found in names.values()):
        folder = fresh(prepared, f"at-{passage}")
        assert runner.run(*EXTRACT, cwd=folder, kill_at=passage).code == -signal.SIGKILL, passage
        check_whole(runner, folder, unbroken)
        shutil.rmtree(folder)
    print(f"killed at {len(names)} named steps ({', '.join(names)}): 0 differences")


def stop_at_random(runner: Runner, prepared: Path, times: int, number: signal.Signals,
                   unbroken: Unbroken) -> None:
    """Send a signal at moments spread over the whole of a run, by what it has done and not by the clock."""
    rng = random.Random(int(number))
    codes: Counter[int | None] = Counter()
    for i in range(times):
        folder = fresh(prepared, f"moment-{number.name}-{i}")
        run, wanted = runner.start(*EXTRACT, cwd=folder), rng.randrange(len(unbroken[1]))
        while len(run.steps()) < wanted and run.alive():
            time.sleep(.002)
        time.sleep(rng.uniform(0, .2))
        if run.alive():
            run.kill(number)
        run.wait()
        codes[run.code] += 1
        if number != signal.SIGKILL:
            ended(run, run.code or 0, *(["stopped"] if run.code == 130 else []))
            assert run.code in (0, 130), "it stopped, or had ended"
        check_whole(runner, folder, unbroken)
        shutil.rmtree(folder)
    print(f"{number.name} at {times} random moments, exit codes {dict(codes)}: 0 differences")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped(runner: Runner, prepared: Path, number: signal.Signals, unbroken_real: Unbroken) -> None:
    folder = fresh(prepared, f"stopped-{number.name}")
    run = runner.start(*EXTRACT, cwd=folder)
    while "detections.kept" not in run.steps():
        time.sleep(.01)
    run.kill(number)
    ended(run.wait(), 130, "stopped; everything committed is kept")
    check_whole(runner, folder, unbroken_real)


@pytest.mark.slow("seventy runs and reruns; one of each signal runs always")
@pytest.mark.timeout(7200)
def test_fifty_random_moments(runner: Runner, prepared: Path, unbroken_real: Unbroken) -> None:
    for number, times in ((signal.SIGKILL, 50), (signal.SIGTERM, 10), (signal.SIGINT, 10)):
        stop_at_random(runner, prepared, times, number, unbroken_real)


def test_the_disk_fills_up(runner: Runner, prepared: Path, unbroken: Unbroken, tiny: Tiny) -> None:
    """A small file system; where none may be mounted, a limit on the size of files, which the system tells alike."""
    folder = fresh(prepared, "full")
    features = folder / "cache" / "features"
    features.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(features)], check=True,
                       capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        ended(runner.run(*EXTRACT, cwd=folder, tiny=tiny, file_bytes=20_000), 3, "File too large", "free disk space")
        check_whole(runner, folder, unbroken, tiny)
        return
    try:
        ended(runner.run(*EXTRACT, cwd=folder, tiny=tiny), 3, "No space left on device", "free disk space")
        list(store_of(folder).values())
        subprocess.run(["mount", "-o", "remount,size=50m", str(features)], check=True)
        check_whole(runner, folder, unbroken, tiny)
    finally:
        subprocess.run(["umount", str(features)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permission_taken_away(runner: Runner, prepared: Path, unbroken: Unbroken, tiny: Tiny) -> None:
    """The store is another user's, who let nobody write: told, and nothing of it lost."""
    folder = fresh(prepared, "permission")
    assert runner.run(*EXTRACT, cwd=folder, tiny=tiny, kill_at="segment.journaled:1").code == -signal.SIGKILL
    denied = runner.run(*EXTRACT, cwd=folder, tiny=tiny, user=NOBODY)
    ended(denied, denied.code or 0, "ermission", "next:")
    assert denied.code in (2, 3)
    check_whole(runner, folder, unbroken, tiny)


def share(runner: Runner, prepared: Path, writers: int, crops: str = "crops", tiny: Tiny = (),
          every: str = "1") -> None:
    """Let several runs do one store, kill one of them in the middle, and count what each did."""
    clips, words = len(list((prepared / crops).iterdir())), (*CROPPED, crops, "--embed-every", every)
    alone, folder = fresh(prepared, f"alone{writers}-{every}"), fresh(prepared, f"share{writers}-{every}")
    ended(runner.run(*words, cwd=alone, tiny=tiny), 0, f"{clips} clips computed")
    runs = [runner.start(*words, cwd=folder, kill_at="chunk.torn:6" if i == 0 else "", tiny=tiny)
            for i in range(writers)]
    assert runs[0].wait().code == -signal.SIGKILL
    for run in runs[1:]:
        ended(run.wait(), 0, "0 failed")
        assert len(store_of(folder)) == clips, "a run that ended left nothing undone"
    commits = [run.steps().count("commit.marked") for run in runs]
    assert sum(commits) == clips, "each clip is done once"
    assert arrays(store_of(folder)) == arrays(store_of(alone))
    assert store_of(folder).digest() == store_of(alone).digest()
    assert not list(store_of(folder).work.glob("*.journal")), "the dead writer's clip was taken over"
    print(f"{writers} runs, one killed: {commits} commits, digest equal to one run's")


def test_several_runs_share_the_work(runner: Runner, prepared: Path) -> None:
    share(runner, prepared, 3, "few")


def test_several_runs_share_the_work_with_some_frames_embedded(runner: Runner, prepared: Path) -> None:
    share(runner, prepared, 3, "few", ("cnn",), "auto")


@pytest.mark.slow("sixty clips and up to eight runs; twelve clips and three runs are always shared")
@pytest.mark.timeout(7200)
def test_sixty_clips_are_shared(runner: Runner, prepared: Path) -> None:
    for writers in (2, 4, 8):
        share(runner, prepared, writers)


def test_a_run_waits_for_what_another_has_and_takes_over_from_the_dead(runner: Runner, prepared: Path) -> None:
    folder = fresh(prepared, "waits")
    first = runner.start(*EXTRACT, "--concurrent-clips", 1, cwd=folder)
    while "detections.kept" not in first.steps():
        time.sleep(.01)
    first.kill(signal.SIGSTOP)
    second = runner.start(*EXTRACT, "--concurrent-clips", 1, cwd=folder)
    while "waiting for clips of another process: long" not in second.err():
        time.sleep(.01)
    assert set(store_of(folder)) == {"short"} and runner.ask({"poll": second.pid}) is None
    first.kill(signal.SIGKILL)
    first.wait()
    ended(second.wait(), 0, "2 clips computed")
    assert second.steps().count("detections.kept") == 3, "two of long's blocks of 8 (one was kept), one of short's"
