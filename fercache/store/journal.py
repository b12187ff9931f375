"""What a journal says of a clip on its way."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.runtime import atomic_io
from fercache.store.manifest import LARGEST

DETECTION_COLUMNS = 6


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` of some arrays, and the sha256 of each of their chunks."""

    start: int
    stop: int
    chunks: dict[str, list[str]]


@dataclass
class JournalState:
    """The sum of a journal's records.

    Attributes
    ----------
    detected, detections : rows that were looked at, and what was found, ``(n, 6)`` each.
    clock : the run that is the clock, where it was set.
    segments : runs of features, one after the other.
    """

    detected: int = 0
    detections: list[NDArray[np.float64]] = field(default_factory=list)
    frame_table: RowRange | None = None
    segments: list[RowRange] = field(default_factory=list)


def detection_record(stop: int, rows: NDArray[np.float64]) -> dict[str, Any]:
    """Return the record of detections up to row `stop`."""
    return {"detected": stop, "rows": base64.b64encode(rows.astype("<f8").tobytes()).decode()}


def range_record(kind: str, run: RowRange) -> dict[str, Any]:
    """Return the record of a clock or of a segment."""
    return {kind: [run.start, run.stop], "chunks": run.chunks}


def read_journal_state(records: Iterable[dict[str, Any]], taps: Sequence[str], clock: str) -> JournalState | None:
    """Return the sum of the records after the first; None where they are not what a writer of `taps` writes."""
    past = JournalState()
    try:
        for record in records:
            _add(past, record, taps, clock)
    except (KeyError, TypeError, ValueError):
        return None
    return past


def _add(past: JournalState, record: dict[str, Any], taps: Sequence[str], clock: str) -> None:
    if "detected" in record:
        rows = np.frombuffer(base64.b64decode(record["rows"]), "<f8").reshape(-1, DETECTION_COLUMNS)
        past.detections.append(rows.astype(np.float64))
        past.detected = int(record["detected"])
    elif "frame_table" in record:
        past.frame_table = _run(record["frame_table"], {clock: record["chunks"][clock]})
    else:
        run = _run(record["segment"], {tap: record["chunks"][tap] for tap in taps})
        # a segment written again makes those after it void
        past.segments = [held for held in past.segments if held.start < run.start]
        past.segments.append(run)


def _run(span: list[int], chunks: dict[str, list[str]]) -> RowRange:
    start, stop = (int(row) for row in span)
    if not 0 <= start < stop:
        raise ValueError(span)
    return RowRange(start, stop, {name: [str(digest) for digest in digests] for name, digests in chunks.items()})


# What is durable of a clip on its way: lines appended, each with its checksum, read up to the first torn one.

LONGEST_JOURNAL = 16 * LARGEST


class Journal:
    """An append-only file of JSON records.

    Notes
    -----
    A crash tears at most the last line, and a torn or altered line ends the reading. What a record says of other files
    is checked against their digests when it is read, so that both can be synced in one turn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.records = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """Return the records up to the first line that is not whole."""
        if not self.path.is_file() or self.path.stat().st_size > LONGEST_JOURNAL:
            return []
        found = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            record = _parse(line)
            if record is None:
                break
            found.append(record)
            self.end += len(line)
        return found

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; `sync` makes it last, or a sync of `path` among other files."""
        text = json.dumps(record, separators=(",", ":")).encode()
        atomic_io.make_folder(self.path.parent)
        with self.path.open("ab") as file:
            file.truncate(self.end)
            self.end += file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.records.append(record)

    def sync(self) -> None:
        """Return when the records have reached the disk."""
        atomic_io.fsync_all([self.path])

    def remove(self) -> None:
        """Forget everything; a journal that a crash brings back is harmless, since files are checked against it."""
        self.records, self.end = [], 0
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record of one line, None where the line is torn or altered."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
