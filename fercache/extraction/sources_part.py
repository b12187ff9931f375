"""Whether a clip's source is still what its features were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fercache import media
from fercache.store.manifest import same_source


def unchanged(known: dict[str, Any], path: Path, kind: str, strict: bool = False) -> bool:
    """Return whether the source at `path` is the one whose digest is `known`.

    Parameters
    ----------
    strict : read every byte, whatever the time stamps say.

    Raises
    ------
    ClipError
        The source is gone or cannot be read.

    Notes
    -----
    Three steps, each as cheap as what it can miss is unlikely. Another size, another name in a folder or another sample
    of a file is another source. Equal samples and an equal time stamp: the same one. Equal samples and another time
    stamp (a copy, or something written in place): every byte is compared with the hash that is kept with each clip. So
    without `strict` only a change is missed that keeps the size, the samples and the time stamp, which takes intent.
    """
    now = media.digest(path, kind, strict)
    if strict or not same_source(known, now) or known.get("mtime_ns") == now["mtime_ns"]:
        return same_source(known, now)
    return same_source(known, media.digest(path, kind, strict=True))
