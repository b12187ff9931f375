"""Several clips at once: the same bytes, whatever their number and that of the threads; a bad one costs only itself."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_nets
from numpy.typing import NDArray
from PIL import Image
from videos import cut, make_video

from fercache import data
from fercache.backbones import backbone
from fercache.config import DatasetConfig, ExtractConfig
from fercache.errors import StoreError
from fercache.extraction import clip, job, resources
from fercache.extraction.job import ExtractReport
from fercache.media.video import VideoSource
from fercache.store import writer
from fercache.store.embedding_store import EmbeddingStore

TAPS = ("block8", "repeat_1-3x3")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and segments of 8 frames, batches of 4 crops: many borders."""
    for place in ("extraction.clip.SEGMENT", "store.writer.SEGMENT", "store.layout.CHUNK",
                  "extraction.clip.DETECT_BLOCK"):
        monkeypatch.setattr(f"fercache.{place}", 8)
    monkeypatch.setitem(backbone.BATCHES, "cpu", 4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> Path:
    """Six videos of 1 to 21 frames; one without a face, one that breaks off."""
    folder = tmp_path_factory.mktemp("videos")
    small = [np.asarray(Image.fromarray(frame).resize((320, 180))) for frame in face_frames]
    for name, count in (("a", 21), ("b", 1), ("c", 8), ("d", 13)):
        make_video(folder / f"{name}.mp4", list(itertools.islice(itertools.cycle(small), count)))
    make_video(folder / "empty.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 9)
    make_video(folder / "torn.mp4", small * 8, container_options={"movflags": "faststart"})
    cut(folder / "torn.mp4", .7)
    return folder


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> Path:
    """Nine folders of 1 to 17 crops, with gaps."""
    folder = tmp_path_factory.mktemp("crops")
    for i in range(9):
        (folder / f"{i}").mkdir()
        for number in range(1, 2 * i + 2):
            if number % 5:
                face = Image.fromarray(face_frames[(i + number) % 12][50:330, 180:400])
                face.save(folder / f"{i}" / f"{number:05d}.jpg")
    return folder


def run(clips: Path, home: Path, weights_at: Path, **how: object) -> ExtractReport:
    home.mkdir()
    (home / "weights").symlink_to(weights_at)
    config = ExtractConfig(taps=TAPS, **{"threads": 1, **how})  # type: ignore[arg-type]
    return job.extract_dataset(data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home), config, home)


def store_of(report: ExtractReport) -> EmbeddingStore:
    return EmbeddingStore.open(report.store)


ALONE, TOGETHER = (1, 1), ((4, 1), (4, 2), (9, 2))
"""Clips at once and threads: of the run to compare with, and of the others."""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny nets: what a number of clips or threads may change lies around the nets, not in them."""
    tiny_nets.install(replace=monkeypatch.setattr)


def digests(clips: Path, folder: Path, weights_at: Path, together: Sequence[tuple[int, int]],
            **how: object) -> set[str]:
    """Return the digests of the stores of several runs: one if they agree."""
    return {store_of(run(clips, folder / f"{flight}-{threads}", weights_at, concurrent_clips=flight, threads=threads,
                         **how)).digest() for flight, threads in (ALONE, *together)}


@pytest.mark.parametrize("views", [1, 3])
def test_crops_in_any_number_of_clips_and_threads(crops: Path, tmp_path: Path, weights_at: Path, tiny: None,
                                                  views: int) -> None:
    assert len(digests(crops, tmp_path, weights_at, TOGETHER, augmentations=views)) == 1


def test_crops_with_the_real_cnn(crops: Path, tmp_path: Path, weights_at: Path, full: bool) -> None:
    """The real CNN too gives the same bits in whatever batches the clips meet."""
    if full:
        assert len(digests(crops, tmp_path, weights_at, TOGETHER, augmentations=3)) == 1
        return
    few = tmp_path / "few"
    few.mkdir()
    for name in "0135":
        (few / name).symlink_to(crops / name)
    assert len(digests(few, tmp_path, weights_at, TOGETHER[1:2], augmentations=2)) == 1


@pytest.mark.parametrize("nets", ["tiny", "real"])
def test_videos_in_any_number_of_clips_and_threads(videos: Path, tmp_path: Path, weights_at: Path, full: bool,
                                                   monkeypatch: pytest.MonkeyPatch, nets: str) -> None:
    if nets == "tiny":
        tiny_nets.install(replace=monkeypatch.setattr)
    together = ((4, 1), (4, 2)) if full or nets == "tiny" else ((4, 2),)
    reports = {(flight, threads): run(videos, tmp_path / f"{flight}-{threads}", weights_at, concurrent_clips=flight,
                                      threads=threads) for flight, threads in (ALONE, *together)}
    assert len({store_of(report).digest() for report in reports.values()}) == 1
    for report in reports.values():
        assert [c.clip for c in report.failures()] == ["torn"] and report.count("computed") == 5
        assert sorted(store_of(report)) == ["a", "b", "c", "d", "empty"]
        seen = {name: store_of(report)[name].frame_table["valid"] for name in ("a", "empty")}
        assert seen["a"].all() and not seen["empty"].any()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("how", [{}, {"people": "all", "margin": 0.2}, {"embed_every": "3"}, {"embed_every": "auto"},
                                 {"augmentations": 2}])
def test_frames_are_decoded_once_where_memory_allows(videos: Path, tmp_path: Path, weights_at: Path,
                                                     monkeypatch: pytest.MonkeyPatch, how: dict[str, object]) -> None:
    """Faces are kept from detection to the CNN; whether all, a few or none fit does not change a byte."""
    again: list[int] = []
    pick = VideoSource.pick
    monkeypatch.setattr(VideoSource, "pick", lambda self, rows: again.extend(rows) or pick(self, rows))
    decoded, stores = [], set()
    for size in (1 << 30, 200_000, 0):
        monkeypatch.setattr(resources, "FACES_BYTES", size)
        again.clear()
        stores.add(store_of(run(videos, tmp_path / str(size), weights_at, concurrent_clips=2, **how)).digest())
        decoded.append(len(again))
    assert len(stores) == 1
    if "augmentations" not in how:
        assert decoded[0] == 0 < decoded[1] < decoded[2]


@pytest.mark.usefixtures("tiny")
def test_a_file_that_grows_after_detection_is_extracted_again(videos: Path, tmp_path: Path, weights_at: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    clips, grow = tmp_path / "clips", clip.ClipJob.embed_boxes
    clips.mkdir()
    growing = clips / "c.mp4"
    growing.write_bytes((videos / "c.mp4").read_bytes())

    def growing_meanwhile(self: clip.ClipJob, table: NDArray[np.float64]) -> None:
        growing.write_bytes((videos / "d.mp4").read_bytes())
        grow(self, table)

    def again() -> ExtractReport:
        config = ExtractConfig(taps=TAPS, threads=1)
        return job.extract_dataset(data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home), config,
                                   home)

    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        patch.setattr(clip.ClipJob, "embed_boxes", growing_meanwhile)
        first = run(clips, home, weights_at)
    assert not first.failures() and first.frames("computed") == 8
    second, third = again(), again()
    assert (second.count("computed"), second.frames("computed"), third.count("cached")) == (1, 13, 1)


@pytest.mark.usefixtures("tiny")
def test_clips_are_really_at_work_at_once(crops: Path, tmp_path: Path, weights_at: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips meet within their jobs: one at a time would wait for ever."""
    meeting = threading.Barrier(2, timeout=60)
    job, met = clip.ClipJob.run, itertools.count()

    def meets(self: clip.ClipJob) -> int:
        if next(met) < 2:
            meeting.wait()
        return job(self)

    monkeypatch.setattr(clip.ClipJob, "run", meets)
    assert run(crops, tmp_path / "home", weights_at, concurrent_clips=2).count("computed") == 9


@pytest.mark.usefixtures("tiny")
def test_an_error_that_is_no_clips_ends_the_run_and_loses_nothing(crops: Path, tmp_path: Path, weights_at: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store_of(run(crops, tmp_path / "whole", weights_at)).digest()
    commit, count = writer.ClipWriter.commit, itertools.count()

    def full(self: writer.ClipWriter, **more: object) -> object:
        if next(count) == 3:
            raise OSError(28, "No space left on device")
        return commit(self, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(writer.ClipWriter, "commit", full)
        with pytest.raises(OSError, match="No space left"):
            run(crops, tmp_path / "home", weights_at, concurrent_clips=4)
    config = ExtractConfig(taps=TAPS, threads=1)
    dataset = data.load_dataset(DatasetConfig(clips=str(crops), dataset="table"), tmp_path / "home")
    report = job.extract_dataset(dataset, config, tmp_path / "home")
    assert report.count("cached") >= 3 and store_of(report).digest() == whole


@pytest.mark.usefixtures("tiny")
def test_a_damaged_store_ends_the_run_in_any_thread(crops: Path, tmp_path: Path, weights_at: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: clip.ClipJob) -> int:
        raise StoreError("is damaged", where=self.source.path)

    monkeypatch.setattr(clip.ClipJob, "run", damaged)
    with pytest.raises(StoreError):
        run(crops, tmp_path / "home", weights_at, concurrent_clips=3)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("crew", "clip", "ahead"))]


@pytest.mark.usefixtures("tiny")
def test_the_log_names_the_bottleneck(videos: Path, tmp_path: Path, weights_at: Path,
                                      caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fercache.extraction.run_control.MIN_WORK_S", 0.0)
    with caplog.at_level(logging.INFO):
        run(videos, tmp_path / "home", weights_at, detect_every=1)
    said = [record.getMessage() for record in caplog.records if "is the bottleneck" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("decode ")
    for part in ("detect ", "crop ", "cnn ", "write "):
        assert part in said[0]
