"""Frames of clips: a video file, a picture or a folder of face crops, one row per source frame, in constant memory.

Open this file first: it opens any clip. `video.py` and `pictures.py` hold the two kinds of sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fercache.errors import ClipError, InputError
from fercache.media.pictures import PictureFolder, count_pictures, folder_digest, is_picture, numbered, read_picture
from fercache.media.source import VIDEO_ENDINGS, Source, check_content, file_digest
from fercache.media.video import VideoSource, packet_times

__all__ = ["KINDS", "PHOTO_FPS", "VIDEO_ENDINGS", "is_picture", "numbered", "open_source", "packet_times",
           "source_digest"]

KINDS = ("video", "crops", "photos")

PHOTO_FPS = 1 / 3600  # photos of a clip are an hour apart, so that no window in seconds joins two of them


def open_source(path: Path, kind: str, *, crop_fps: float = 30.0, damaged: str = "fail") -> Source:
    """Return the clip at `path`, after a check that it can be read.

    `kind`: ``"video"`` (also a single picture, a clip of one frame), ``"crops"`` (a folder of faces or frames by
    number, of which `crop_fps` make a second) or ``"photos"`` (the same without a clock). `damaged`: ``"fail"`` or
    ``"keep"`` what decodes of a video that ends early. Raises InputError if the kind is unknown; ClipError if the file
    or folder is missing or empty, is not a video, or has no frame or picture.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of clip {kind!r}; choose one of: {', '.join(KINDS)}", where=path)
    if kind == "video":
        check_content(path)
        if not is_picture(path.name):
            return VideoSource.open(path, damaged)
        if read_picture(path) is None:
            raise ClipError("not a picture that can be opened", where=path, hint="copy or download it again")
        if (count := count_pictures(path)) > 1:
            raise ClipError(f"{count} pictures in one file (animated, or with pages)", where=path,
                            hint="convert it to MP4 or GIF, or save the picture that is meant alone")
        return PictureFolder(path, {1: ""}, crop_fps)  # `path / ""` is the path itself
    names = numbered(path)
    for number in {min(names), max(names)}:
        # An empty picture is a row without a face, but a folder of Git LFS pointers is no clip.
        if (path / names[number]).stat().st_size:
            check_content(path / names[number])
    return PictureFolder(path, names, PHOTO_FPS if kind == "photos" else crop_fps)


def source_digest(path: Path, kind: str, strict: bool = False) -> dict[str, Any]:
    """Return what identifies a clip: ``size``, ``mtime_ns``, ``sha256`` (hex), and ``inode`` of a file.

    `strict`: also hash every byte, into ``sha256_strict``.

    Compare ``size`` and the hashes, not ``mtime_ns`` and ``inode``, which differ in a copy. ``sha256`` covers every
    byte of a file up to 8 MiB; of a larger one its size and 64 samples of 64 KiB, evenly spaced from the first byte to
    the last (between two samples, a change that keeps the size goes unnoticed). Of a folder it covers the names and
    sizes of the pictures, not their bytes; its ``mtime_ns`` is the sum of theirs, so that rewriting any picture changes
    it. `extraction.job.unchanged_stamp` combines them.
    """
    return file_digest(path, strict) if kind == "video" else folder_digest(path, strict)
