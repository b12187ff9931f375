"""What every source of frames offers, and the cheap hash that tells one file from another."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError

MAX_PIXELS = 1 << 26  # of one picture: 8192 x 8192, 200 MB as RGB; a damaged header may claim anything
WHOLE_BYTES = 8 << 20  # files up to this size are hashed whole even when nobody asks for it
SAMPLES, SAMPLE_BYTES = 64, 64 << 10


class Frame(NamedTuple):
    """One row of a clip's frame clock.

    Attributes
    ----------
    index : frame number, from 1.
    time_s : seconds since the first frame, strictly increasing.
    image : (H, W, 3) uint8 RGB, upright; None where the source has no picture here or it cannot be decoded.
    damaged : whether the source is damaged here; the picture, if there is one, was patched up by the decoder.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a frame
    time_s: float
    image: NDArray[np.uint8] | None
    damaged: bool = False


class Source(ABC):
    """A clip that can be read frame by frame, as often as one likes, in constant memory."""

    kind: str
    path: Path

    @abstractmethod
    def frames(self, start: int = 0) -> Iterator[Frame]:
        """Yield every frame from row `start` (from 0) on, in the order of presentation.

        Raises
        ------
        ClipError
            The source cannot be read, or ends early; raised after the last good frame.
        """

    @abstractmethod
    def length(self) -> int | None:
        """Return the stated number of frames; it may be wrong, and None where nothing is stated."""

    @abstractmethod
    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of these rows (from 0), ascending, each once; rows past the end are left out."""

    @abstractmethod
    def digest(self, strict: bool = False) -> dict[str, Any]:
        """Return what tells this source from another: ``size``, ``mtime_ns``, ``sha256`` (hex); ``inode`` of a file.

        Parameters
        ----------
        strict : also hash every byte, into ``sha256_strict``.

        Notes
        -----
        Compare ``size`` and the hashes, not ``mtime_ns`` and ``inode``: a copy has others. ``sha256`` covers a file
        up to 8 MiB whole; of a larger one its size and 64 samples of 64 KiB, evenly from the first byte to the last (4
        MiB in all: between two samples a change of equal length is not seen). Of a folder, the names and sizes of its
        pictures and no byte of them; its ``mtime_ns`` is the sum of theirs, which any picture written anew moves.
        `unchanged` says how the three are used together.
        """


def regular_file(path: Path) -> os.stat_result:
    """Return the file's status.

    Raises
    ------
    ClipError
        It is absent, unreachable, empty, or no regular file (to open a pipe would wait for ever).
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("neither a file nor a folder", where=path, hint="a clip is a video file or a folder of crops")
    if not status.st_size:
        raise ClipError("the file is empty", where=path, hint="copy or download it again")
    return status


def unreadable(path: Path, error: Exception) -> ClipError:
    """Return the error that says why `path` cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ClipError(f"cannot be read ({reason})", where=path, hint="check the path and its permissions")


def file_stamp(path: Path) -> dict[str, int]:
    """Return a file's ``size``, ``mtime_ns`` and ``inode``: what is known of it before a byte is read."""
    status = regular_file(path)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def file_digest(path: Path, strict: bool) -> dict[str, Any]:
    """Return a file's stamp and hashes, as `Source.digest` says."""
    stamp = file_stamp(path)
    try:
        found: dict[str, Any] = {**stamp, "sha256": _sampled(path, stamp["size"])}
        if strict:
            found["sha256_strict"] = whole_hash(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def whole_hash(path: Path) -> str:
    """Return the sha256 (hex) of every byte of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(path: Path, size: int) -> str:
    """Return the hash of the file if it is small, else of its size and of samples spread from head to tail."""
    if size <= WHOLE_BYTES:
        return whole_hash(path)
    found = hashlib.sha256(f"sampled {size}".encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def only(frames: Iterator[Frame], rows: Sequence[int]) -> Iterator[Frame]:
    """Yield the frames of these rows, and stop reading after the last of them."""
    wanted = set(rows)
    stop = max(wanted, default=-1) + 1
    return (frame for frame in islice(frames, stop) if frame.index - 1 in wanted)
