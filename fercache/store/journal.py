"""The journal of a clip that is being written: records that survive a crash, and what they add up to."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache.runtime import atomic_io
from fercache.store.layout import FRAME_TABLE, VERSION
from fercache.store.manifest import MAX_METADATA_BYTES

MAX_JOURNAL_BYTES = 16 * MAX_METADATA_BYTES


class BeginRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The first record: all that the clip's bytes depend on. `begin` is the clip's name."""

    begin: str
    version: int = VERSION
    fingerprint: str
    taps: dict[str, tuple[int, ...]]
    source: dict[str, Any]
    provenance: dict[str, Any]


class DetectionRecord(msgspec.Struct, frozen=True):
    """Detections of the rows up to `detected`: (n, 6) float64, little endian, which JSON holds as base64."""

    detected: int
    rows: bytes


class FrameTableRecord(msgspec.Struct, frozen=True):
    """Start and stop of the frame table, and the sha256 of each of its chunks."""

    rows: tuple[int, int] = msgspec.field(name="frame_table")
    chunks: dict[str, tuple[str, ...]]


class SegmentRecord(msgspec.Struct, frozen=True):
    """Start and stop of a segment, and the sha256 of each chunk of every tap."""

    rows: tuple[int, int] = msgspec.field(name="segment")
    chunks: dict[str, tuple[str, ...]]


JournalRecord = BeginRecord | DetectionRecord | FrameTableRecord | SegmentRecord
RECORD_TYPES: dict[str, type[JournalRecord]] = {
    "begin": BeginRecord, "detected": DetectionRecord, "frame_table": FrameTableRecord, "segment": SegmentRecord}
"""A key that only this type of record has -> the type."""


@dataclass
class JournalState:
    """The sum of a journal's records."""

    # `detected`, `detections`: rows in which faces were detected, and the faces, ``(n, columns)`` each.
    detected: int = 0
    detections: list[NDArray[np.float64]] = field(default_factory=list)
    frame_table: FrameTableRecord | None = None  # if it was set
    segments: list[SegmentRecord] = field(default_factory=list)  # rows of features, in order

    @classmethod
    def of(cls, records: Iterable[JournalRecord], taps: Sequence[str], columns: int) -> JournalState | None:
        """Return the sum of the records after the first; None if a writer of `taps` does not write such records.

        `columns`: of detections: row, box and score; then the landmarks, if the frame table has them.
        """
        state = cls()
        try:
            for record in records:
                match record:
                    case DetectionRecord():
                        rows = np.frombuffer(record.rows, "<f8").reshape(-1, columns)
                        state.detections.append(rows.astype(np.float64))
                        state.detected = record.detected
                    case FrameTableRecord(rows, chunks) if 0 <= rows[0] < rows[1] and chunks.keys() == {FRAME_TABLE}:
                        state.frame_table = record
                    case SegmentRecord(rows, chunks) if 0 <= rows[0] < rows[1] and chunks.keys() == {*taps}:
                        # A resumed writer that found a damaged segment wrote it again, and all those after it.
                        state.segments = [*(part for part in state.segments if part.rows[0] < rows[0]), record]
                    case _:
                        return None
        except ValueError:
            return None
        return state


class Journal:
    """An append-only file of JSON records, a line and a checksum each; open it with `Journal.open`."""
    # A crash tears at most the last line, and reading ends at the first torn or altered one. The digests of chunks that
    # a record holds are compared with the files when a writer resumes, so journal and chunks can be synced together, in
    # any order.

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.records: list[JournalRecord] = []

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Return the journal at `path` with its records up to the first line that is not intact."""
        journal = cls(path)
        if path.is_file() and path.stat().st_size <= MAX_JOURNAL_BYTES:
            for line in path.read_bytes().splitlines(keepends=True):
                record = _parse(line)
                if record is None:
                    break
                journal.records.append(record)
                journal.end += len(line)
        return journal

    def append(self, record: JournalRecord) -> None:
        """Add a record; it is durable after `sync`, or after a sync of `path` among other files."""
        text = json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode()
        atomic_io.make_folder(self.path.parent)
        with self.path.open("ab") as file:
            # Cut off a torn line first: a record behind it would never be read.
            file.truncate(self.end)
            self.end += file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.records.append(record)

    def sync(self) -> None:
        """Return when the records have reached the disk."""
        atomic_io.fsync_all([self.path])

    def remove(self) -> None:
        """Delete the file and all records."""
        self.records, self.end = [], 0
        # Not synced: a journal that a crash brings back is harmless, since files are compared with its digests.
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> JournalRecord | None:
    """Return the record of one line, None if the line is torn or altered."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    try:
        # The standard library parses: see `parse_json`.
        value = json.loads(text)
        kind = next((kind for key, kind in RECORD_TYPES.items() if key in value), None)
        return None if kind is None else msgspec.convert(value, kind)
    except (ValueError, TypeError, RecursionError):
        return None
