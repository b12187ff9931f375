"""A source that changed is noticed, by the cheapest look that can tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fercache import media
from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.errors import ClipError
from fercache.extraction.job import ExtractionJob, unchanged_stamp
from fercache.media import source as media_source
from fercache.media.source import SAMPLE_BYTES, WHOLE_BYTES
from fercache.store.embedding_store import EmbeddingStore

Sized = tuple[Path, str]


@pytest.fixture(params=["small", "large", "crops"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Sized:
    """A file that is hashed whole, one of which samples are hashed, a folder of pictures."""
    path = tmp_path / "clip"
    if request.param == "crops":
        path.mkdir()
        for number in range(1, 4):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path / f"{number:05d}.png")
        return path, "crops"
    size = WHOLE_BYTES // 8 if request.param == "small" else 3 * WHOLE_BYTES
    path.write_bytes(np.random.default_rng(0).bytes(size))
    return path, "video"


def inner(path: Path) -> Path:
    return path / "00002.png" if path.is_dir() else path


def overwrite(path: Path, at: int, stamp: bool) -> None:
    """Change one byte in place; keep the time stamp or not."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    moved = status.st_mtime_ns + (10**9 if stamp else 0)
    os.utime(path, ns=(status.st_atime_ns, moved))


def between(path: Path) -> int:
    """Return a byte that no sample holds, or any byte where there are no samples."""
    size = path.stat().st_size
    return SAMPLE_BYTES + 100 if size > WHOLE_BYTES else size // 2


def test_the_same_and_a_copy_are_the_same(source: Sized, tmp_path: Path) -> None:
    path, kind = source
    known = media.source_digest(path, kind, strict=True)
    assert unchanged_stamp(known, path, kind) and unchanged_stamp(known, path, kind, strict=True)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy, copy_function=shutil.copyfile) if path.is_dir() else shutil.copyfile(path, copy)
    os.utime(inner(copy), ns=(1, 1))
    assert unchanged_stamp(known, copy, kind), "a copy has other time stamps: its bytes are compared"


def test_a_byte_changed_in_place_is_noticed(source: Sized) -> None:
    """Also where the size and the samples stay: the time stamp tells that bytes must be compared."""
    path, kind = source
    known = media.source_digest(path, kind, strict=True)
    overwrite(inner(path), between(inner(path)), stamp=True)
    assert not unchanged_stamp(known, path, kind)


def test_strict_believes_no_time_stamp(source: Sized) -> None:
    path, kind = source
    known = media.source_digest(path, kind, strict=True)
    overwrite(inner(path), between(inner(path)), stamp=False)
    assert unchanged_stamp(known, path, kind), "what the cheap look cannot see, as its docstring says"
    assert not unchanged_stamp(known, path, kind, strict=True)


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(p.read_bytes() + b"x"), lambda p: overwrite(p, 0, True),
                                    lambda p: overwrite(p, p.stat().st_size - 1, True),
                                    lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_size_head_and_tail_are_always_seen(source: Sized, change: Callable[[Path], None]) -> None:
    path, kind = source
    known = media.source_digest(path, kind, strict=True)
    change(inner(path))
    assert not unchanged_stamp(known, path, kind)


@pytest.mark.parametrize("source", ["crops"], indirect=True)
def test_pictures_that_come_go_or_are_renamed(source: Sized) -> None:
    path, kind = source
    known = media.source_digest(path, kind, strict=True)
    (path / "00003.png").rename(path / "00004.png")
    assert not unchanged_stamp(known, path, kind)
    (path / "00004.png").unlink()
    assert not unchanged_stamp(known, path, kind)


def test_a_mark_without_the_whole_hash_is_judged_by_what_it_has(source: Sized) -> None:
    path, kind = source
    known = media.source_digest(path, kind)
    os.utime(inner(path), ns=(1, 1))
    assert unchanged_stamp(known, path, kind) and unchanged_stamp(known, path, kind, strict=True)


def test_a_source_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClipError):
        unchanged_stamp({}, tmp_path / "none", "video")


def test_a_file_with_size_time_stamp_and_inode_of_its_own_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                      ) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"frames")
    known = media.source_digest(path, "video", strict=True)
    old = {key: value for key, value in known.items() if key != "inode"}
    read: list[object] = []
    sampled = media_source._sampled  # the one place where a file is read for its digest
    monkeypatch.setattr(media_source, "_sampled", lambda *given: read.append(given) or sampled(*given))
    assert unchanged_stamp(known, path, "video") and not read
    assert unchanged_stamp(old, path, "video") and len(read) == 1, "0.1 recorded no inode: the file is read"
    assert unchanged_stamp({**known, "inode": 1}, path, "video") and len(read) == 2, "a copy with its time stamp"
    assert unchanged_stamp(known, path, "video", strict=True) and len(read) == 3


def test_a_run_starts_without_opening_every_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Stated:
        def __init__(self, path: Path) -> None:
            opened.append(path.name)
            self.frames = path.stat().st_size // 100

        def length(self) -> int:
            return self.frames

    trials = []
    for number in range(200):
        path = tmp_path / f"{number:03d}.mp4"
        path.write_bytes(bytes(100 * (1 + number % 7)))
        trials.append(Trial(name=path.stem, path=path, kind="video", parent=path.stem, group="g", split="train"))
    store = EmbeddingStore.create(tmp_path / "s.zarr", {}, {"block8": (4,)})
    work = ExtractionJob(ExtractConfig(), store, "mtcnn", None)  # type: ignore[arg-type]  # nothing is embedded
    monkeypatch.setattr(media, "open_source", lambda path, *_, **__: Stated(path))
    frames = sum(path.stat().st_size for path in tmp_path.glob("*.mp4")) // 100
    assert abs(work.log_size(trials) - frames) < 1e-6 * frames, "the others are reckoned by their size"
    assert len(opened) <= 16
    assert work.log_size(trials[:3]) == 1 + 2 + 3


def test_a_run_with_nothing_to_do_needs_no_torch() -> None:
    """`fercache extract` imports the job first; torch would take seconds."""
    code = "import sys, fercache.extraction.job, fercache.extraction.distributed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
