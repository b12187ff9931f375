"""The commands as typed with ``--cache s3://...``: the features move, all else stays, and the numbers are the same."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from forked import Runner
from numpy.typing import NDArray
from PIL import Image
from s3 import bucket, s3_endpoint  # noqa: F401 - fixtures

from fercache.store.embedding_store import EmbeddingStore

PEOPLE, FRAMES = 4, 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> Path:
    """Folders of crops with labels, three kinds of brightness a clip."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["clip,frame,label"]
    for person in range(PEOPLE):
        (folder / f"p{person}").mkdir()
        for i, frame in enumerate(face_frames[:FRAMES]):
            shade = np.clip(frame[40:300, 180:440] * (0.5 + 0.25 * (i % 3)) + person, 0, 255).astype(np.uint8)
            Image.fromarray(shade).resize((64, 64)).save(folder / f"p{person}" / f"{i + 1:05d}.jpg")
            rows.append(f"p{person},{i + 1},{i % 3}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "clips.csv").write_text("\n".join(["clip,path", *(f"p{n},p{n}" for n in range(PEOPLE))]) + "\n")
    return folder


def run(runner: Runner, home: Path, clips: Path, *words: str,
        killed_at: str = "") -> subprocess.CompletedProcess[str]:
    """Type a command in the folder `home`; the CNN is tiny, since the numbers only have to be the same."""
    data = ["--clips", str(clips / "clips.csv"), "--labels", str(clips / "labels.csv"), "--name", "faces",
            "--classes", "low,middle,high"]
    cut = next(i for i, word in enumerate(words) if not word.startswith("--") and "cache" not in words[max(i - 1, 0)])
    return runner.typed(*words[:cut + 1], *data, *words[cut + 1:], cwd=home, kill_at=killed_at, tiny=("cnn",))


def test_the_features_move_and_the_numbers_stay(runner: Runner, bucket: str, clips: Path,  # noqa: F811
                                                cache: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("cache", "fast"):
        (home / name).mkdir(parents=True)
        (home / name / "weights").symlink_to(cache / "weights")
    url = f"{bucket}/shared"
    far, taps = ("--cache", url, "--local-cache", "fast"), ("--taps", "block8,repeat_2")
    one = ("--concurrent-clips", "1")  # one clip after the other, so that the first is committed when the second is hit
    hit = run(runner, home, clips, *far, "extract", *taps, *one, killed_at="segment.synced:2")
    assert hit.returncode == -signal.SIGKILL
    done = run(runner, home, clips, *far, "extract", *taps)
    assert done.returncode == 0 and "3 clips computed" in done.stderr and "1 cached" in done.stderr, done.stderr
    place = done.stdout.strip()
    assert place.startswith(f"{url}/features/faces/casia-webface-")
    near = run(runner, home, clips, "extract", *taps)
    assert near.returncode == 0, near.stderr
    assert EmbeddingStore.open(place).digest() == EmbeddingStore.open(home / near.stdout.strip()).digest()
    assert not list((home / "fast").rglob("*.zarr"))

    said = run(runner, home, clips, *far, "info", "--json")
    assert json.loads(said.stdout)["store"] == place and json.loads(said.stdout)["clips"] == PEOPLE, said.stderr
    books = {}
    for where in (far, ()):
        done = run(runner, home, clips, *where, "train-heads", *taps, "--heads", "frame", "--ensemble", "1",
                   "--epochs", "3")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        books[where] = home / done.stdout.strip()
    assert books[far].is_relative_to(home / "fast")
    with h5py.File(books[far]) as one, h5py.File(books[()]) as other:
        np.testing.assert_array_equal(one["logits/frame"][:], other["logits/frame"][:])
    assert not [key for key in fsspec.filesystem("s3", use_listings_cache=False).find(url) if "/features/" not in key]


def test_nothing_is_made_where_the_bucket_is_not(runner: Runner, bucket: str, clips: Path,  # noqa: F811
                                                 cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(cache / "weights")
    done = run(runner, tmp_path, clips, "--cache", "s3://there-is-no-such-bucket/x", "extract", "--taps", "block8")
    assert done.returncode == 2 and "bucket" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "home-cache"}
