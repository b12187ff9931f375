"""A run that is asked to end does so at the next block or segment, and the next one goes on with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

from fercache import data
from fercache.backbones import backbone
from fercache.config import DatasetConfig, ExtractConfig
from fercache.extraction import job
from fercache.extraction.job import ExtractReport
from fercache.store.embedding_store import EmbeddingStore

pytestmark = pytest.mark.usefixtures("tiny_cnn")
CONFIG = ExtractConfig(taps=("block8",), detect_every=5, threads=1)


def after(calls: int) -> Callable[[], bool]:
    """Return a wish to stop that comes with the call number `calls`."""
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return count[0] >= calls
    return stop


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and segments of 8 frames."""
    for place in ("extraction.clip.SEGMENT", "store.writer.SEGMENT", "store.layout.CHUNK",
                  "extraction.clip.DETECT_BLOCK"):
        monkeypatch.setattr(f"fercache.{place}", 8)
    monkeypatch.setitem(backbone.BATCHES, "cpu", 4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> Path:
    """Two short videos."""
    folder = tmp_path_factory.mktemp("stopped")
    small = [np.asarray(Image.fromarray(frame).resize((320, 180))) for frame in face_frames]
    for name in ("a", "b"):
        make_video(folder / f"{name}.mp4", small + small[:5])
    return folder


def run(clips: Path, home: Path, weights_at: Path, stop: Callable[[], bool] = lambda: False) -> ExtractReport:
    home.mkdir(exist_ok=True)
    if not (home / "weights").exists():
        (home / "weights").symlink_to(weights_at)
    return job.extract_dataset(data.load_dataset(DatasetConfig(clips=str(clips), dataset="table"), home), CONFIG, home,
                               stop=stop)


def test_asked_again_and_again_it_ends_with_the_same_bytes(clips: Path, tmp_path: Path, weights_at: Path) -> None:
    whole = run(clips, tmp_path / "whole", weights_at)
    assert whole.count("computed") == 2
    left = [run(clips, tmp_path / "parts", weights_at, after(calls)).count("left") for calls in (1, 3, 5)]
    assert left[0] == 2 and all(left), left
    last = run(clips, tmp_path / "parts", weights_at)
    assert last.count("left") == 0 and last.count("computed") + last.count("cached") == 2
    assert EmbeddingStore.open(last.store).digest() == EmbeddingStore.open(whole.store).digest()


def test_what_is_left_is_no_failure(clips: Path, tmp_path: Path, weights_at: Path) -> None:
    report = run(clips, tmp_path / "home", weights_at, lambda: True)
    assert [(c.clip, c.state) for c in report.clips] == [("a", "left"), ("b", "left")]
    assert not report.failures() and not report.failures_at.exists()
