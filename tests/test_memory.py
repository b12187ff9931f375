"""Stage one in constant memory: many times the frames add almost nothing to the peak."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

Picture = NDArray[np.uint8]
SHORT = 600
FACES = 40
"""Frames with a face, at both ends: segments with features at the start and at the end of the clip."""

CODE = """
import json, resource, sys
from pathlib import Path
from fercache import data
from fercache.config import DatasetConfig, ExtractConfig
from fercache.extraction import job

clips, home = sys.argv[1:]
dataset = data.load_dataset(DatasetConfig(clips=clips, dataset="table"), Path(home))
config = ExtractConfig(taps=("conv2d_4b",), detect_every=16, threads=1, device="cpu")
report = job.extract_dataset(dataset, config, Path(home))
clip = report.clips[0]
print(json.dumps([clip.state, clip.frames, clip.faces, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def pictures(faces: list[Picture], count: int) -> Iterator[Picture]:
    """Yield frames, (90, 160, 3): faces at both ends, and between them a grey that changes."""
    for i in range(count):
        yield faces[i % len(faces)] if min(i, count - 1 - i) < FACES else np.full((90, 160, 3), 90 + i % 8, np.uint8)


class _Lazy:
    """A sequence that is made while it is written; the first picture is asked for apart."""

    def __init__(self, faces: list[Picture], count: int) -> None:
        self.faces, self.count = faces, count

    def __getitem__(self, index: int) -> Picture:
        return next(itertools.islice(pictures(self.faces, self.count), index, None))

    def __iter__(self) -> Iterator[Picture]:
        return pictures(self.faces, self.count)


def peak_mb(folder: Path, faces: list[Picture], count: int, weights_at: Path) -> float:
    """Return the peak of a process that extracts one clip of so many frames."""
    (folder / "clips").mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "home" / "weights").symlink_to(weights_at)
    make_video(folder / "clips" / "clip.mp4", _Lazy(faces, count),  # type: ignore[arg-type]
               options={"preset": "ultrafast", "g": "250"})
    done = subprocess.run([sys.executable, "-c", CODE, str(folder / "clips"), str(folder / "home")], text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    state, frames, found, peak = json.loads(done.stdout.strip().splitlines()[-1])
    assert (state, frames) == ("computed", count) and FACES <= found < count / 2, (state, frames, found)
    return float(peak)


@pytest.mark.timeout(3600)
def test_a_long_clip_takes_no_more_memory_than_a_short_one(face_frames: list[Picture], weights_at: Path,
                                                           tmp_path: Path, full: bool) -> None:
    count, most_mb = (60_000, 200) if full else (4_000, 60)
    faces = [np.asarray(Image.fromarray(frame).resize((160, 90))) for frame in face_frames]
    short, long = (peak_mb(tmp_path / str(n), faces, n, weights_at) for n in (SHORT, count))
    print(f"{SHORT} frames: {short:.0f} MB; {count} frames: {long:.0f} MB")
    assert long - short < most_mb
