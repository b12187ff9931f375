"""Folders of crops: ``00001.jpg`` is frame 1, whatever else is or is not there."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fercache.errors import ClipError
from fercache.media.source import MAX_PIXELS, Frame, Source, unreadable, whole_hash

log = logging.getLogger(__name__)

warnings.filterwarnings("ignore", module=r"PIL\.")
# PIL warns of odd metadata; the pixels are what counts. Once and here: `catch_warnings` changes the filters of the
# whole process, and pictures are read in several threads.


NAME = re.compile(r"(?P<prefix>(?:.*[_-])?)(?P<number>[0-9]+)\.(?P<ending>jpg|jpeg|png)", re.IGNORECASE | re.DOTALL)
MAX_NUMBER = 10_000_000  # 92 hours at 30 frames a second: beyond it a name is a date or an id, not a frame number
MAX_BYTES = 256 << 20
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError,
          NotImplementedError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)




class PictureFolder(Source):
    """A folder of numbered pictures, ``.jpg``, ``.jpeg`` or ``.png``.

    Parameters
    ----------
    path : the folder.
    fps : frames a second; a folder has no clock of its own.

    Raises
    ------
    ClipError
        Absent, no numbered picture in it, a picture numbered 0, or a number beyond ten million.

    Notes
    -----
    The number in the name is the frame, with any count of leading zeros; a missing number is a row without a picture.
    Where two names carry one number (``00001.jpg`` and ``1.png``) the one with more leading zeros is read, then .jpg
    before .jpeg before .png, then the first by the alphabet, and the log says so. Anything else in the folder is
    ignored. Where no name is a plain number, names of one prefix are read by the number after it
    (``S005_001_00000011.png``, as CK+ has them).
    """

    kind = "crops"

    def __init__(self, path: Path, fps: float = 30.0) -> None:
        self.path, self.fps = path, fps
        self.names = numbered(path)
        self.highest = max(self.names)

    def frames(self, start: int = 0) -> Iterator[Frame]:
        return (self._frame(row) for row in range(start, self.highest))

    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        return (self._frame(row) for row in sorted(set(rows)) if 0 <= row < self.highest)

    def length(self) -> int | None:
        return self.highest

    def digest(self, strict: bool = False) -> dict[str, Any]:
        return folder_digest(self.path, self.names, strict)

    def _frame(self, row: int) -> Frame:
        name = self.names.get(row + 1)
        if name is None:
            return Frame(row + 1, row / self.fps, None)
        image = read_picture(self.path / name)
        return Frame(row + 1, row / self.fps, image, image is None)


def numbered(path: Path) -> dict[int, str]:
    """Return the names of a folder's pictures by frame number, as `CropSource` says."""
    found: dict[int, str] = {}
    twice: list[str] = []
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if NAME.fullmatch(entry.name) and entry.is_file()]
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    for name in sorted(_of_one_prefix(path, names), key=_preference):
        if found.setdefault(number_of(name), name) != name:
            twice.append(name)
    _check(path, found)
    if twice:
        log.warning("%s: %d numbers stand twice; %s is not read, %s is", path, len(twice), twice[0],
                    found[number_of(twice[0])])
    return found


def number_of(name: str) -> int:
    """Return the frame number in a picture's name, 0 where it has none."""
    parts = NAME.fullmatch(name)
    return int(parts["number"]) if parts else 0


def _of_one_prefix(path: Path, names: Sequence[str]) -> list[str]:
    """Return the names that are plain numbers; where there is none, those that share the one prefix there is.

    Raises
    ------
    ClipError
        Several prefixes: pictures of several clips in one folder.
    """
    prefixes = {name: parts["prefix"] for name in names if (parts := NAME.fullmatch(name))}
    plain = [name for name, prefix in prefixes.items() if not prefix]
    several = sorted(set(prefixes.values()))
    if not plain and len(several) > 1:
        raise ClipError(f"pictures of several clips in one folder: {several[0]}.., {several[1]}..", where=path,
                        hint="give each clip a folder of its own")
    return plain or list(prefixes)


def _preference(name: str) -> tuple[int, int, str]:
    stem, _, ending = name.rpartition(".")
    return -len(stem), ("jpg", "jpeg", "png").index(ending.lower()), name


def _check(path: Path, found: dict[int, str]) -> None:
    if not found:
        raise ClipError("no picture named by its frame number in this folder", where=path,
                        hint="crops are named 00001.jpg, 00002.jpg, ... (.jpg, .jpeg or .png)")
    if 0 in found:
        raise ClipError(f"{found[0]}: frames count from 1", where=path,
                        hint="rename the pictures so that the first frame of the video is 00001")
    if max(found) > MAX_NUMBER:
        raise ClipError(f"{found[max(found)]} is no frame number", where=path,
                        hint="crops are named by frame number: 00001.jpg, 00002.jpg, ...")


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """Return a JPEG or PNG file as (H, W, 3) uint8 RGB, upright; None where it cannot be decoded.

    Raises
    ------
    ClipError
        The file cannot be read at all: a fault of the disk or of permissions, not of the picture.

    Notes
    -----
    The pixels are those of PIL's ``convert("RGB")``, after the turn that an EXIF orientation asks for. Alpha is
    dropped, grey is repeated, CMYK is converted without a colour profile, 16-bit grey keeps its high byte.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return _rgb(data)
    except DAMAGE as error:
        log.info("%s: not decodable (%s)", path, "neither JPEG nor PNG" if isinstance(error, UnidentifiedImageError)
                 else error)
        return None


def _rgb(data: bytes) -> NDArray[np.uint8]:
    """Return an encoded picture as (H, W, 3) uint8 RGB; raises one of DAMAGE."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
        if image.mode.startswith("I"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def folder_digest(path: Path, names: dict[int, str], strict: bool) -> dict[str, Any]:
    """Return a folder's ``size``, ``mtime_ns`` and hashes over its pictures, as `Source.digest` says."""
    total, times, hashes = 0, 0, [hashlib.sha256() for _ in range(1 + strict)]
    try:
        for number in sorted(names):
            picture = path / names[number]
            status = picture.stat()
            size = status.st_size
            total, times = total + size, times + status.st_mtime_ns
            line = f"{names[number]} {size}"
            hashes[0].update(f"{line}\n".encode())
            if strict:
                hashes[1].update(f"{line} {whole_hash(picture)}\n".encode())
    except OSError as error:
        raise unreadable(path, error) from error
    found = {"size": total, "mtime_ns": times % (1 << 63), "sha256": hashes[0].hexdigest()}
    return found | ({"sha256_strict": hashes[1].hexdigest()} if strict else {})
