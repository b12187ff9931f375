"""Names of clips and taps as names of folders: reversible, and safe on every file system and in Zarr."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote_to_bytes

KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
LONGEST = 180
"""Longest folder name that spells its name out; file systems end at 255 bytes."""
HEAD = 100
HASHED = "%%"
"""Stands between the head of a long name and its sha256; in a spelled-out name no % follows a %."""
EMPTY = "%"

_SPECIAL = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)|zarr\.json$|\.|__", re.IGNORECASE)
"""Names that Windows, Zarr or a shell's listing gives a meaning; their first character is escaped."""


def encode(name: str) -> str:
    """Return the folder name of `name`: percent-encoded UTF-8, different for every name, never a path.

    Notes
    -----
    Names over LONGEST bytes end in their sha256 instead; what they stand for is in the clip's mark.
    """
    raw = name.encode("utf-8", "surrogatepass")
    kept = "".join(chr(byte) if byte in KEPT else f"%{byte:02X}" for byte in raw)
    if _SPECIAL.match(kept):
        kept = f"%{raw[0]:02X}{kept[1:]}"
    if kept.endswith("."):
        kept = f"{kept[:-1]}%2E"
    if len(kept) > LONGEST:
        return f"{kept[:HEAD]}{HASHED}{hashlib.sha256(raw).hexdigest()}"
    return kept or EMPTY


def decode(folder: str) -> str | None:
    """Return the name that `folder` spells out; None for a hashed one and for what `encode` never makes."""
    if folder == EMPTY:
        return ""
    try:
        name = unquote_to_bytes(folder).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return name if encode(name) == folder else None
