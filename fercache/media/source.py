"""The interface of every source of frames, and the digests that identify a source file."""

from __future__ import annotations

import hashlib
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError
from fercache.runtime.atomic_io import file_sha256

# Largest picture: 8192 x 8192, 200 MB as RGB. A damaged header may state any size.
MAX_PIXELS = 1 << 26
# Files up to this size are always hashed whole.
WHOLE_BYTES = 8 << 20
# Endings of video files in folders and tables, of the containers that FFmpeg is allowed to open (`video.FORMATS`).
VIDEO_ENDINGS = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc",
    ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts",
    ".vc1", ".vob", ".webm", ".wmv", ".y4m"))
# What is hashed of a larger file unless `strict`.
SAMPLES, SAMPLE_BYTES = 64, 64 << 10


class Frame(NamedTuple):
    """One row of a clip's frame table."""

    index: int  # type: ignore[assignment]  # frame number, from 1; hides tuple.index
    time_s: float  # seconds since the first frame, strictly increasing
    # (H, W, 3) RGB, upright; None if the source has no picture here or it cannot be decoded.
    image: NDArray[np.uint8] | None
    damaged: bool = False  # whether the source is damaged here; if there is a picture, the decoder concealed the error


class Source(ABC):
    """A clip that can be read frame by frame, any number of times, in constant memory.

    Every method raises ClipError if the file or folder is absent, unreadable or not what its name claims.
    """

    path: Path

    @abstractmethod
    def frames(self, start: int = 0) -> Iterator[Frame]:
        """Yield every frame from row `start` (from 0) on, in presentation order; an early end raises ClipError last."""

    @abstractmethod
    def length(self) -> int | None:
        """Return the number of frames that the file states, which may be wrong; None if it states none."""

    @abstractmethod
    def times(self) -> NDArray[np.float64]:
        """Return the time of every frame, (T,), without its picture; raises as `frames` does."""

    @abstractmethod
    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of these rows (from 0), ascending, each once; rows past the end are omitted."""


def file_stamp(path: Path) -> dict[str, int]:
    """Return a file's ``size``, ``mtime_ns`` and ``inode``, without reading a byte of it."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise ClipError("neither a file nor a folder", where=path, hint="a clip is a video file or a folder of crops")
    if not status.st_size:
        raise ClipError("the file is empty", where=path, hint="copy or download it again")
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


POINTER = b"version https://git-lfs.github.com/spec/"
HTML = (b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")


def check_content(path: Path) -> None:
    """Refuse a file that is not what its name claims: empty, a Git LFS pointer, or a web page."""
    file_stamp(path)
    with reading(path), path.open("rb") as file:
        head = file.read(512)
    if head.startswith(POINTER):
        raise ClipError("a Git LFS pointer, not the file itself", where=path,
                        hint="run `git lfs pull` in its repository")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(HTML):
        raise ClipError("a web page, not the file itself", where=path,
                        hint="the server sent a page (a login, an error) in its place: download it again")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of the file system, of a decoder or of memory into a ClipError about `path`."""
    try:
        yield
    except (OSError, ValueError, MemoryError, av.FFmpegError) as error:
        raise ClipError(f"cannot be read ({reason_of(error)})", where=path,
                        hint="check the path and its permissions") from error


def reason_of(error: Exception) -> str:
    """Return the system's or FFmpeg's text for an error, without its number and path."""
    return getattr(error, "strerror", None) or str(error)


def file_digest(path: Path, strict: bool) -> dict[str, Any]:
    """Return a file's stamp and hashes, as `media.source_digest` describes them."""
    stamp = file_stamp(path)
    with reading(path):
        digest: dict[str, Any] = {**stamp, "sha256": _sampled(path, stamp["size"])}
        if strict:
            digest["sha256_strict"] = file_sha256(path)
    return digest


def _sampled(path: Path, size: int) -> str:
    """Return the hash of a small file, or of the size of a large one and of samples from start to end."""
    if size <= WHOLE_BYTES:
        return file_sha256(path)
    # The size is hashed too: between the samples, bytes may be added or removed.
    digest = hashlib.sha256(f"sampled {size}".encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
