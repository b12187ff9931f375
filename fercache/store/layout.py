"""The files of a store: Zarr 3 documents, the grid of chunks, the columns of the frame table, names of folders."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fercache.runtime.atomic_io import json_bytes

VERSION = 2  # format of stores: 1 was fercache 0.1 (its frame table was the array "clock"); 2 names it "frame_table"
SEGMENT = 1024
"""Frames between two durable points of a clip's features; a multiple of CHUNK, so two segments never share a chunk."""
CHUNK = 256  # most rows of a chunk. A shorter clip has chunks of its own length, since Zarr pads the last chunk.
FRAME_COLUMNS = ("index", "time_s", "valid", "x1", "y1", "x2", "y2", "score", "track")
"""Columns of the frame table: frame from 1, seconds from 0, 1 if it has a face, its box in pixels, score, track."""
LANDMARK_COLUMNS = tuple(f"{point}_{axis}" for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
                         for axis in "xy")
"""Further columns where crops are aligned: landmarks in pixels; left and right are those of the picture."""
EMBEDDED = "embedded"
"""A last column where only some frames are embedded: 1 in those whose values the arrays of the taps hold, in order."""
FRAME_TABLE = "frame_table"
META = "zarr.json"
DTYPES = {"float16": 2, "float64": 8}  # element types that a store holds, always little endian, and their bytes


@dataclass(frozen=True)
class Grid:
    """The chunks of one array: blocks of whole rows."""

    shape: tuple[int, ...]  # (T, ...) of the array
    dtype: str  # one of DTYPES

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        return min(self.shape[0], CHUNK)

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

    def chunks(self, start: int, stop: int) -> range:
        """Return the chunks that hold rows `start` to `stop`."""
        return range(start // self.rows, math.ceil(stop / self.rows) if stop > start else start // self.rows)


FRAME_WIDTHS = {len(FRAME_COLUMNS) + landmarks + embedded
                for landmarks in (0, len(LANDMARK_COLUMNS)) for embedded in (0, 1)}
"""Numbers of columns that a frame table may have."""


def is_sparse(width: int) -> bool:
    """Return whether a frame table of so many columns names the embedded frames: the taps have rows of these only."""
    return EMBEDDED in frame_columns(width)


def group_document(attributes: dict[str, Any]) -> bytes:
    """Return the `zarr.json` of a group."""
    return json_bytes({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def frame_columns(width: int) -> tuple[str, ...]:
    """Return the names of the columns of a frame table."""
    names = (*FRAME_COLUMNS, *LANDMARK_COLUMNS) if width > len(FRAME_COLUMNS) + 1 else FRAME_COLUMNS
    return (*names, EMBEDDED)[:width]


def array_document(name: str, grid: Grid) -> bytes:
    """Return the `zarr.json` of an array."""
    # Follows the Zarr 3 core specification: regular grid, bytes codec, no compression (it saves 8 % and halves the
    # rate).
    columns = {"columns": list(frame_columns(grid.shape[1]))} if name == FRAME_TABLE else {}
    # The separator is a dot, so that a chunk is a file and not a tree of folders. The fill value is
    # NaN: other tools must not read a missing chunk as zeros, which are valid features.
    return json_bytes({
        "zarr_format": 3, "node_type": "array", "shape": list(grid.shape), "data_type": grid.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [grid.rows, *grid.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN", "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": columns, "storage_transformers": []})


# Folder names of clips and taps: reversible, and valid on every file system and in Zarr.

MAX_NAME_BYTES = 180  # longest folder name that spells out the whole name; file systems allow 255 bytes
PREFIX_BYTES = 100
HASH_SEPARATOR = "%%"  # separates the start of a long name from its sha256; in other folder names no % follows a %
EMPTY_NAME = "%"

_SPECIAL = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)|zarr\.json$|\.|__", re.IGNORECASE)
"""Names with a meaning to Windows, Zarr or a shell's listing; their first character is escaped."""


@lru_cache(1 << 16)
def encode_name(name: str) -> str:
    """Return the folder name of `name`: percent-encoded UTF-8, different for every name, never a path."""
    # A longer name than MAX_NAME_BYTES ends in its sha256; the clip's manifest has the whole name.
    raw = name.encode("utf-8", "surrogatepass")
    escaped = quote_from_bytes(raw, safe="").replace("~", "%7E")
    if _SPECIAL.match(escaped):
        escaped = f"%{raw[0]:02X}{escaped[1:]}"
    if escaped.endswith("."):  # Windows drops a dot at the end
        escaped = f"{escaped[:-1]}%2E"
    if len(escaped) > MAX_NAME_BYTES:
        return f"{escaped[:PREFIX_BYTES]}{HASH_SEPARATOR}{hashlib.sha256(raw).hexdigest()}"
    return escaped or EMPTY_NAME


def decode_name(folder: str) -> str | None:
    """Return the name that `folder` spells out; None for a hashed one and for one that `encode_name` never returns."""
    if folder == EMPTY_NAME:
        return ""
    try:
        name = unquote_to_bytes(folder).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return name if encode_name(name) == folder else None
