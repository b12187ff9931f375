"""Pictures: folders of them, where ``00001.jpg`` is frame 1 even if other files are missing, and single ones."""

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
from fercache.media.source import MAX_PIXELS, Frame, Source, reading
from fercache.runtime.atomic_io import file_sha256

log = logging.getLogger(__name__)

# PIL warns about odd metadata; only the pixels matter here. Set once at import: `catch_warnings` changes the filters of
# the whole process, and several threads read pictures.
warnings.filterwarnings("ignore", module=r"PIL\.")

ENDINGS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")
"""Endings of pictures, without the dot: of two pictures of one number, the one whose ending comes first is read."""
NAME = re.compile(rf"(?P<prefix>(?:.*[^0-9])?)(?P<number>[0-9]+)\.(?P<ending>{'|'.join(ENDINGS)})",
                  re.IGNORECASE | re.DOTALL)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
MAX_NUMBER = 10_000_000  # 92 hours at 30 frames per second: a larger number is a date or an id, not a frame number
MAX_BYTES = 256 << 20
# What PIL's decoders raise on damaged files.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError,
          NotImplementedError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)


class PictureFolder(Source):
    """A folder of numbered pictures, or a single picture; `names`: file name of each frame number, from `numbered`."""

    def __init__(self, path: Path, names: dict[int, str], fps: float) -> None:
        self.path, self.names, self.fps = path, names, fps
        self.highest = max(names)

    def frames(self, start: int = 0) -> Iterator[Frame]:
        return (self._frame(row) for row in range(start, self.highest))

    def pick(self, rows: Sequence[int]) -> Iterator[Frame]:
        return (self._frame(row) for row in sorted(set(rows)) if 0 <= row < self.highest)

    def times(self) -> NDArray[np.float64]:
        return np.arange(self.highest) / self.fps

    def length(self) -> int | None:
        return self.highest

    def _frame(self, row: int) -> Frame:
        name = self.names.get(row + 1)
        image = read_picture(self.path / name) if name is not None else None
        return Frame(row + 1, row / self.fps, image, name is not None and image is None)


def numbered(path: Path) -> dict[int, str]:
    """Return the names of a folder's pictures by frame number.

    Raises ClipError if it is missing, or has no numbered picture, pictures of several clips, a number 0, or a number
    above ten million.
    """
    # The number in the name is the frame number, with any count of leading zeros; a missing number is a row without a
    # picture. If two names have the same number (``00001.jpg`` and ``1.png``), the one with more leading zeros is read,
    # then the one whose ending comes first in ENDINGS, then the first in alphabetical order, and a warning is logged.
    # All other files are ignored. If no name is a plain number, names that share one prefix are read by the number
    # after it (``S005_001_00000011.png``, as in CK+; ``frame1.jpg``).
    with reading(path), os.scandir(path) as entries:
        parsed = [parts for entry in entries if (parts := NAME.fullmatch(entry.name)) and entry.is_file()]
    prefixes = sorted({parts["prefix"] for parts in parsed})
    if "" in prefixes:
        parsed = [parts for parts in parsed if not parts["prefix"]]
    elif len(prefixes) > 1:
        raise ClipError(f"pictures of several clips in one folder: {prefixes[0]}.., {prefixes[1]}..", where=path,
                        hint="give each clip its own folder")
    names: dict[int, str] = {}
    duplicates: list[tuple[str, str]] = []
    for parts in sorted(parsed, key=lambda parts: (-parts.start("ending"), ENDINGS.index(parts["ending"].lower()),
                                                   parts.string)):
        first = names.setdefault(int(parts["number"]), parts.string)
        if first != parts.string:
            duplicates.append((parts.string, first))
    if not names:
        raise ClipError("no picture is named by its frame number in this folder", where=path,
                        hint=f"name crops 00001.jpg, 00002.jpg, ... (.{', .'.join(ENDINGS)})")
    if 0 in names:
        raise ClipError(f"{names[0]}: frame numbers start at 1", where=path,
                        hint="rename the pictures so that the first frame of the video is 00001")
    if max(names) > MAX_NUMBER:
        raise ClipError(f"{names[max(names)]} is not named by a frame number", where=path,
                        hint="name crops by frame number: 00001.jpg, 00002.jpg, ...")
    if duplicates:
        log.warning("%s: %d pictures have the frame number of another one; %s is ignored, %s is read", path,
                    len(duplicates), *duplicates[0])
    return names


def is_picture(name: str) -> bool:
    """Return whether a file has the ending of a picture."""
    return name[name.rfind(".") + 1:].lower() in ENDINGS and "." in name


def is_numbered(name: str) -> bool:
    """Return whether a file is named as a numbered picture, with or without a prefix: what NAME matches, but faster."""
    dot = name.rfind(".")
    return dot > 0 and name[dot - 1] in "0123456789" and name[dot + 1:].lower() in ENDINGS


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """Return a picture file as (H, W, 3) uint8 RGB, upright, or None if it cannot be decoded.

    Raises ClipError if the file cannot be read at all: a problem of the disk or of permissions, not of the picture.
    """
    # The pixels are those of PIL's ``convert("RGB")``, after the rotation that EXIF asks for. Alpha is dropped, gray is
    # repeated, CMYK is converted without a color profile, 16-bit gray keeps its high byte.
    with reading(path), path.open("rb") as file:
        # Not MAX_BYTES, which would be allocated for each picture.
        data = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Checked before the pixels are allocated: a damaged header may state any size.
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            image.load()
            if image.mode.startswith("I"):  # PIL's own conversion clips 16-bit gray at 255
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except DAMAGE as error:
        log.info("%s: not decodable (%s)", path,
                 f"none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error)
        return None


def count_pictures(path: Path) -> int:
    """Return the number of pictures in a picture file that can be decoded; a phone's JPEG with previews has one."""
    with Image.open(path, formats=FORMATS) as image:
        return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))


def folder_digest(path: Path, strict: bool) -> dict[str, Any]:
    """Return a folder's ``size``, ``mtime_ns`` and hashes over its pictures, as `media.source_digest` describes them.
    """
    total, times, hashes = 0, 0, [hashlib.sha256() for _ in range(1 + strict)]
    with reading(path):
        for _, name in sorted(numbered(path).items()):
            picture = path / name
            status = picture.stat()
            total, times = total + status.st_size, times + status.st_mtime_ns
            line = f"{name} {status.st_size}"
            hashes[0].update(f"{line}\n".encode())
            if strict:
                hashes[1].update(f"{line} {file_sha256(picture)}\n".encode())
    # The time stamps of six pictures already add up to more than 63 bits.
    digest = {"size": total, "mtime_ns": times % (1 << 63), "sha256": hashes[0].hexdigest()}
    return digest | ({"sha256_strict": hashes[1].hexdigest()} if strict else {})
