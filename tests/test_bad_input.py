"""What users bring: one folder with everything that can be wrong with a clip, through the command line."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from forked import Runner
from numpy.typing import NDArray
from PIL import Image
from videos import cut, joined, make_video, set_matrix

from fercache import open_store
from fercache.faces.tracklets import iou

Pictures = list[NDArray[np.uint8]]
NAMES = ("with space", "back\\slash", "ünïcödé 表情", "CON", "zarr.json")


def said_clearly(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check exit code and message; a traceback on a user's screen is a bug."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@dataclass(frozen=True)
class Done:
    """A finished extract over the folder of horrors."""

    work: Path
    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]

    @property
    def store(self) -> Path:
        return self.work / self.first.stdout.strip().splitlines()[-1]

    def failures(self) -> dict[str, str]:
        with (self.store.parent / "failures.csv").open(encoding="utf-8") as file:
            return {row["clip"]: row["message"] for row in csv.DictReader(file)}


def fill(clips: Path, faces: Pictures) -> None:
    """Write the clips: good ones, odd ones, broken ones."""
    (clips / "a").mkdir(parents=True)
    (clips / "b").mkdir()
    good = make_video(clips / "good.mp4", faces)
    for name in NAMES:
        (clips / f"{name}.mp4").write_bytes(good.read_bytes())
    make_video(clips / "a" / "same.mp4", faces[:6])
    make_video(clips / "b" / "same.mp4", faces[6:])
    (clips / "text.mp4").write_text("this is no video\n" * 50)
    (clips / "empty.mp4").write_bytes(b"")
    make_video(clips / "truncated.mp4", faces * 4, container_options={"movflags": "faststart"})
    cut(clips / "truncated.mp4", .6)
    make_video(clips / "noframes.mp4", faces[:1])
    cut(clips / "noframes.mp4", .02)
    make_video(clips / "faceless.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 5)
    sideways = make_video(clips / "phone.mp4", [np.ascontiguousarray(np.rot90(face)) for face in faces])
    set_matrix(sideways, (0, 1, -1, 0))
    small = [np.asarray(Image.fromarray(face).resize((480, 270))) for face in faces]
    parts = [make_video(clips.parent / f"part{i}.h264", pictures, stated="h264")
             for i, pictures in enumerate((faces, small))]
    joined(clips / "resized.mpg", parts)  # read by what it holds, not by its ending


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, face_frames: Pictures, cache: Path, runner: Runner) -> Done:
    """Two runs over the same folder."""
    work = tmp_path_factory.mktemp("horrors")
    fill(work / "clips", face_frames)
    (work / "cache").mkdir()
    (work / "cache" / "weights").symlink_to(cache / "weights")
    words = ("extract", "--clips", "clips", "--taps", "block8", "--threads", 1)
    return Done(work, *(runner.typed(*words, cwd=work, tiny=("cnn",)) for _ in range(2)))


BROKEN = {"text", "empty", "truncated", "noframes"}


def test_broken_clips_are_told_and_the_others_are_complete(done: Done) -> None:
    said_clearly(done.first, 1, "failures.csv", "4 failed")
    failed = done.failures()
    assert set(failed) == BROKEN, failed
    assert "ends early" in failed["truncated"]
    store = open_store(str(done.store))
    assert set(store) == {"good", *NAMES, "a/same", "b/same", "faceless", "phone", "resized"}


def test_a_second_run_does_nothing_but_try_the_broken_ones(done: Done) -> None:
    said_clearly(done.again, 1, "0 clips computed", "11 cached", "4 failed")
    assert done.again.stdout == done.first.stdout


def test_odd_clips_are_ordinary(done: Done) -> None:
    store = open_store(str(done.store))
    for name in NAMES:
        assert (store[name]["block8"][:] == store["good"]["block8"][:]).all(), name
    assert (store["a/same"].frames, store["b/same"].frames) == (6, 6)
    assert not (store["a/same"]["block8"][:] == store["b/same"]["block8"][:]).all()
    assert store["faceless"].frame_table["valid"].sum() == 0
    assert not store["faceless"]["block8"][:].any()
    assert "faceless: no face in any of its 5 frames" in done.first.stderr


def test_a_rotated_phone_video_is_seen_upright(done: Done) -> None:
    store = open_store(str(done.store))
    boxes = np.column_stack([store["phone"].frame_table[c] for c in ("x1", "y1", "x2", "y2")])
    upright = np.column_stack([store["good"].frame_table[c] for c in ("x1", "y1", "x2", "y2")])
    overlap = [iou(one[None], other[None])[0, 0] for one, other in zip(boxes, upright, strict=True)]
    assert min(overlap) > .85, "the picture was encoded twice, so the boxes are near and not equal"


def test_a_change_of_resolution_keeps_every_frame(done: Done) -> None:
    clip = open_store(str(done.store))["resized"]
    assert clip.frames == 24 and clip.frame_table["valid"].all()
    width = clip.frame_table["x2"] - clip.frame_table["x1"]
    assert .65 < width[12:].mean() / width[:12].mean() < .85, "480 / 640 = .75"


@pytest.mark.parametrize(("words", "code", "said"), [
    (("extract", "--clips", "nowhere"), 2, "nowhere"),
    (("extract", "--clips", "void"), 2, "void"),
    (("extract", "--dataset", "affwild2", "--root", "nowhere"), 2, "nowhere"),
    (("extract", "--clips", "clips", "--weights", "none.pt"), 2, "none.pt"),
    (("extract", "--clips", "clips", "--taps", "block9"), 2, "block9"),
    (("extract", "--clips", "clips", "--device", "cuda:7"), 2, "cuda"),
    (("extract", "--clips", "clips", "--min-score", "3"), 2, "--min-score"),
    (("extract", "--clips", "clips", "--precision", "int4"), 2, "int4"),
    (("--stages", "nowhere", "extract"), 2, "nowhere"),
    (("extract", "--stages", "gone", "--clips", "clips"), 2, "gone"),
    (("extract", "--stages", "typo", "--clips", "clips"), 2, "precison"),
    (("train-heads", "--clips", "clips"), 2, "nothing was extracted"),
    (("stack", "--clips", "clips"), 2, "no heads were trained"),
    (("explode",), 2, "explode"),
])
def test_wrong_usage_does_nothing(runner: Runner, tmp_path: Path, cache: Path, words: tuple[str, ...], code: int,
                                  said: str) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "x.mp4").write_text("no video")
    (tmp_path / "typo").mkdir()
    (tmp_path / "typo" / "extract.toml").write_text('precison = "bf16"\n')
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(cache / "weights")
    said_clearly(runner.typed(*words, cwd=tmp_path), code, said)
    assert not list((tmp_path / "cache").glob("features/*/*.zarr")), "something was made"


def test_no_permission_to_write(runner: Runner, tmp_path: Path, cache: Path) -> None:
    """A file where a folder should be refuses root too, whom permissions do not stop."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "x.mp4").write_text("no video")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(cache / "weights")
    (tmp_path / "cache" / "features").write_text("in the way")
    said_clearly(runner.typed("extract", "--clips", "clips", cwd=tmp_path), 2, "cannot write")


def test_annotations_that_do_not_fit(runner: Runner, tmp_path: Path, face_frames: Pictures, cache: Path) -> None:
    """Longer, shorter, absent, a label out of range: told by name; numbers stay with their frames; the rest is done."""
    said = {"longer": [0, 1] * 7, "shorter": [0, 1, 0, 1, 0], "wrong": [0, 7] * 5, "fits": [1, 0] * 5, "absent": None}
    (tmp_path / "labels").mkdir()
    for clip, labels in said.items():
        (tmp_path / "clips" / clip).mkdir(parents=True)
        for i, picture in enumerate(face_frames[:10]):
            Image.fromarray(picture[50:330, 180:400]).save(tmp_path / "clips" / clip / f"{i + 1:05d}.jpg")
        if labels is not None:
            (tmp_path / "labels" / f"{clip}.txt").write_text("\n".join(["Neutral,Happiness", *map(str, labels)]) + "\n")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(cache / "weights")
    data = ("--clips", "clips", "--labels", "labels")
    extracted = runner.typed("extract", *data, "--taps", "block8", cwd=tmp_path, tiny=("cnn",))
    said_clearly(extracted, 1, "wrong: its labels were dropped", "label 7", "absent: 1 clips without a label file",
                 "5 clips computed")
    quick = ("--taps", "block8", "--heads", "frame", "--ensemble", "1", "--epochs", "2")
    said_clearly(runner.typed("train-heads", *data, *quick, cwd=tmp_path), 1, "wrong")
    said_clearly(runner.typed("stack", *data, cwd=tmp_path), 0)
    with (tmp_path / "preds.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels_of = {clip: [int(r["label"] or -1) for r in rows if r["clip"] == clip] for clip in said}
    assert labels_of == {"longer": [0, 1] * 7, "shorter": [0, 1, 0, 1, 0] + [-1] * 5, "fits": [1, 0] * 5,
                         "wrong": [-1] * 10, "absent": [-1] * 10}
    assert [r["valid"] for r in rows if r["clip"] == "longer"] == ["1"] * 10 + ["0"] * 4
