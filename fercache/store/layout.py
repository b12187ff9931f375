"""How arrays lie in files: Zarr 3 documents, the grid of chunks, the columns of the clock."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

VERSION = 2
"""Format of stores: 1 was fercache 0.1 (its frame table was the array "clock"); 2 names it "frame_table"."""
SEGMENT = 1024
"""Frames between two durable points of a clip's features."""
CHUNK = 256
"""Most rows of a chunk; a clip that is shorter has chunks of its own length, since an edge chunk is padded."""
FRAME_COLUMNS = ("index", "time_s", "valid", "x1", "y1", "x2", "y2", "score", "track")
"""Columns of the clock: frame from 1, seconds from 0, 1 where a face was followed, its box in pixels, score, track."""
FRAME_TABLE = "frame_table"
META = "zarr.json"
DTYPES = {"float16": 2, "float64": 8}
"""Element types that a store holds, always little endian, and their bytes."""


def chunk_rows(frames: int) -> int:
    """Return the rows of a chunk of a clip of `frames` frames, or of its first segment."""
    return min(frames, CHUNK)


@dataclass(frozen=True)
class Grid:
    """The chunks of one array: whole rows, one after the other.

    Attributes
    ----------
    shape : (T, ...) of the array.
    dtype : one of DTYPES.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        return chunk_rows(self.shape[0])

    @property
    def count(self) -> int:
        """Number of chunks."""
        return math.ceil(self.shape[0] / self.rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's file, padding of the last one included."""
        return self.rows * self.row_bytes

    def file(self, chunk: int) -> str:
        """Return the file name of a chunk."""
        return ".".join(["c", str(chunk), *["0"] * (len(self.shape) - 1)])

    def files(self) -> list[str]:
        """Return the file names of all chunks, in the order of rows."""
        return [self.file(chunk) for chunk in range(self.count)]


def group_document(attributes: dict[str, Any]) -> bytes:
    """Return the `zarr.json` of a group."""
    return _document({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def array_document(name: str, grid: Grid) -> bytes:
    """Return the `zarr.json` of an array.

    Notes
    -----
    After the Zarr 3 core specification: regular grid, bytes codec, no compression (it saves 8 % and halves the
    rate). Keys are joined by dots, so that a chunk is a file and not a folder. What is missing reads as NaN in other
    tools, never as zeros.
    """
    columns = {"columns": list(FRAME_COLUMNS)} if name == FRAME_TABLE else {}
    return _document({
        "zarr_format": 3, "node_type": "array", "shape": list(grid.shape), "data_type": grid.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [grid.rows, *grid.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN", "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": columns, "storage_transformers": []})


def _document(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


# Names of clips and taps as names of folders: reversible, and safe on every file system and in Zarr.

KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
LONGEST = 180
"""Longest folder name that spells its name out; file systems end at 255 bytes."""
HEAD = 100
HASHED = "%%"
"""Stands between the head of a long name and its sha256; in a spelled-out name no % follows a %."""
EMPTY = "%"

_SPECIAL = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)|zarr\.json$|\.|__", re.IGNORECASE)
"""Names that Windows, Zarr or a shell's listing gives a meaning; their first character is escaped."""


def encode_name(name: str) -> str:
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


def decode_name(folder: str) -> str | None:
    """Return the name that `folder` spells out; None for a hashed one and for what `encode` never makes."""
    if folder == EMPTY:
        return ""
    try:
        name = unquote_to_bytes(folder).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return name if encode_name(name) == folder else None
