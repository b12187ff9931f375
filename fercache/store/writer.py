"""Writing one clip: killed at any moment, the next writer resumes and ends with the same bytes.

The order of durable steps is: folders, journal, chunks with their digests in the journal, array metadata, and at last
the manifest, which makes the clip visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError
from fercache.runtime import atomic_io
from fercache.store.journal import BeginRecord, DetectionRecord, FrameTableRecord, Journal, JournalState, SegmentRecord
from fercache.store.layout import (
    EMBEDDED,
    FRAME_COLUMNS,
    FRAME_TABLE,
    LANDMARK_COLUMNS,
    META,
    SEGMENT,
    Grid,
    array_document,
    encode_name,
    frame_columns,
)
from fercache.store.manifest import ClipManifest, array_manifest, same_source
from fercache.store.remote import StoreFiles


@dataclass(frozen=True, kw_only=True)
class WriterJob:
    """The clip to write: its arrays, and what the result depends on."""

    clip: str
    fingerprint: str
    taps: dict[str, tuple[int, ...]]
    source: dict[str, Any]
    provenance: dict[str, Any]
    landmarks: bool = False  # whether the frame table and the detections have them
    sparse: bool = False  # whether the taps hold the embedded frames only, which a column of the frame table names

    @property
    def columns(self) -> int:
        """The number of columns of the frame table."""
        return len(FRAME_COLUMNS) + len(LANDMARK_COLUMNS) * self.landmarks + self.sparse

    @property
    def detection_columns(self) -> int:
        """The number of columns of the detections: row, box and score, and landmarks."""
        return 6 + len(LANDMARK_COLUMNS) * self.landmarks

    @property
    def folder(self) -> str:
        """The clip's folder."""
        return encode_name(self.clip)

    @property
    def arrays(self) -> list[str]:
        """The names of the clip's arrays."""
        return sorted([FRAME_TABLE, *self.taps])

    def key(self, array: str, name: str = "") -> str:
        """Return the key of an array's folder, or of a file in it."""
        return f"{self.folder}/{encode_name(array)}/{name}".rstrip("/")

    def grid(self, array: str, rows: int) -> Grid:
        """Return the chunks of an array of so many rows."""
        if array == FRAME_TABLE:
            return Grid((rows, self.columns), "float64")
        return Grid((rows, *self.taps[array]), "float16")

    def record(self) -> BeginRecord:
        """Return the journal's first record."""
        return BeginRecord(begin=self.clip, fingerprint=self.fingerprint, taps=self.taps, source=self.source,
                           provenance=self.provenance)

    def journal_state(self, journal: Journal) -> JournalState | None:
        """Return the work of an earlier writer if it gives the same bytes as this job, else None."""
        first = journal.records[0] if journal.records else None
        # Everything but the source must be equal: other versions or threads may give other bytes.
        if (not isinstance(first, BeginRecord) or not same_source(self.source, first.source)
                or msgspec.structs.replace(first, source=self.source) != self.record()):
            return None
        return JournalState.of(journal.records[1:], list(self.taps), self.detection_columns)


class ClipWriter:
    """A clip that is being written: detections, frame table and segments are durable when their call returns."""
    # Chunks are written in place, and the journal has their digests. A chunk that has no record, or differs from it, is
    # written again. The manifest is written last, after everything else has reached the disk.

    def __init__(self, files: StoreFiles, journal: Journal, job: WriterJob) -> None:
        self.files, self.journal, self.job = files, journal, job
        # Rows whose detections are in the journal, those of an earlier run included; rows whose features are on disk.
        self.detected = self.written = 0
        self._detections: list[NDArray[np.float64]] = []
        self._frame_table: NDArray[np.float64] | None = None
        self._chunks: dict[str, list[str]] = {name: [] for name in job.arrays}

    @classmethod
    def open(cls, files: StoreFiles, journal: Journal, job: WriterJob) -> ClipWriter:
        """Return a writer that goes on where an earlier one of the same job ended, or starts anew."""
        writer = cls(files, journal, job)
        state = job.journal_state(journal)
        if state is None:
            writer._begin()
        else:
            writer._resume(state)
        return writer

    def _begin(self) -> None:
        """Start anew, and discard what other writers left of the clip."""
        # The journal goes first: it must never vouch for chunks of the folder that comes after.
        self.journal.remove()
        atomic_io.durable_step("begin.journal-gone")
        self.files.remove_tree(self.job.folder)
        atomic_io.durable_step("begin.folder-gone")
        self.files.make_folders(map(self.job.key, self.job.arrays))
        atomic_io.durable_step("begin.folders")
        self.journal.append(self.job.record())
        atomic_io.durable_step("begin.journaled")

    def _resume(self, state: JournalState) -> None:
        """Take over the work of an earlier writer as far as the files agree with the journal."""
        for name in self.files.sizes(self.job.folder):
            if name.startswith(atomic_io.TEMPORARY):
                self.files.remove(f"{self.job.folder}/{name}")
        # A power loss may have kept the journal and lost the folders.
        self.files.make_folders(map(self.job.key, self.job.arrays))
        self.detected, self._detections = state.detected, state.detections
        if state.frame_table is not None and (chunks := self._read_intact(state.frame_table)) is not None:
            rows = np.frombuffer(b"".join(chunks), "<f8").reshape(-1, self.job.columns)
            self._frame_table = rows[:state.frame_table.rows[1]].astype(np.float64)  # drops the padding
        for segment in state.segments:
            if segment.rows[0] != self.written or self._read_intact(segment) is None:
                break
            self.written = segment.rows[1]
        atomic_io.durable_step("resume.read")

    def _read_intact(self, record: FrameTableRecord | SegmentRecord) -> list[bytearray] | None:
        """Return the bytes of the chunks, which count as written; None if one is missing or has changed."""
        contents = []
        for name, digests in record.chunks.items():
            grid = self.job.grid(name, record.rows[1])
            chunks = grid.chunks(*record.rows)
            if len(chunks) != len(digests):
                return None
            for chunk, digest in zip(chunks, digests, strict=True):
                data = bytearray(grid.chunk_bytes)
                complete = self.files.fill(self.job.key(name, grid.file(chunk)), memoryview(data))
                if not complete or hashlib.sha256(data).hexdigest() != digest:
                    return None
                contents.append(data)
        for name, digests in record.chunks.items():
            self._chunks[name] += digests
        return contents

    def keep_detections(self, stop: int, rows: NDArray[np.float64]) -> None:
        """Log the detections of the rows from `detected` up to `stop` in the journal.

        `rows`: (n, 6) float64: row from 0, x1, y1, x2, y2, score; no row for a frame without a face. With landmarks (n,
        16): then x and y of each.
        """
        if stop <= self.detected or rows.ndim != 2 or rows.shape[1] != self.job.detection_columns:
            raise InputError(f"detections {rows.shape} up to row {stop} do not follow row {self.detected}",
                             where=self.job.clip)
        self.journal.append(DetectionRecord(stop, rows.astype("<f8").tobytes()))
        self.journal.sync()
        atomic_io.durable_step("detections.kept")
        self._detections.append(rows.astype(np.float64))
        self.detected = stop

    def detections(self) -> NDArray[np.float64]:
        """Return all detections so far, ``(M, 6 or 16)``, as `keep_detections` takes them."""
        return np.concatenate([np.empty((0, self.job.detection_columns)), *self._detections])

    @property
    def frame_table(self) -> NDArray[np.float64] | None:
        """The frame table, ``(T, 9)``, if it was set."""
        return None if self._frame_table is None else self._frame_table.copy()

    def _rows_of(self, table: NDArray[np.float64]) -> int:
        """Return the number of rows of each tap."""
        return int(table[:, -1].sum()) if self.job.sparse else len(table)

    def set_frame_table(self, table: NDArray[np.float64]) -> None:
        """Store the frame table, ``(T, 9)`` with FRAME_COLUMNS; more with landmarks or if the job is sparse.

        It fixes the clip's length.
        """
        if (table.shape != self.job.grid(FRAME_TABLE, len(table)).shape
                or self._rows_of(table) < max(self.written, 1)):
            raise InputError(f"a frame table of shape {table.shape} does not fit {self.written} written frames",
                             where=self.job.clip, hint="use one row per frame with columns "
                                  f"{', '.join(frame_columns(self.job.columns))}")
        if self.job.sparse:
            check_embedded(table, self.job.clip)
        self._chunks[FRAME_TABLE] = []
        self._put("frame_table", 0, {FRAME_TABLE: np.ascontiguousarray(table, "<f8")})
        self._frame_table = table.astype(np.float64)

    def write(self, start: int, values: dict[str, NDArray[np.float16]]) -> None:
        """Write one segment: rows `start` to ``start + n`` of every tap, ``(n, ...) float16`` each."""
        # Segments are written in order and have SEGMENT rows; the last one may have fewer.
        rows = self._check(start, values)
        self._put("segment", start, {tap: np.ascontiguousarray(value, "<f2") for tap, value in values.items()})
        self.written = start + rows

    def _check(self, start: int, values: dict[str, NDArray[np.float16]]) -> int:
        """Return the number of rows of a segment; refuse one that does not fit."""
        if values.keys() != self.job.taps.keys():
            raise InputError(f"got taps {sorted(values)}, the store holds {sorted(self.job.taps)}", where=self.job.clip)
        shapes = {tap: value.shape[1:] for tap, value in values.items()}
        lengths = {len(value) for value in values.values()}
        if len(lengths) > 1 or shapes != self.job.taps or any(v.dtype != np.float16 for v in values.values()):
            raise InputError(f"segment of {shapes} is not float16 of the store's shapes {self.job.taps}",
                             where=self.job.clip)
        rows = lengths.pop()
        end = start + SEGMENT if self._frame_table is None else min(start + SEGMENT, self._rows_of(self._frame_table))
        if start != self.written or start % SEGMENT or not rows or start + rows > end:
            raise InputError(f"rows {start} to {start + rows} do not follow row {self.written}", where=self.job.clip,
                             hint=f"write segments of {SEGMENT} rows in order; only the last one is shorter")
        return rows

    def _put(self, kind: str, start: int, values: dict[str, NDArray[Any]]) -> None:
        """Write rows of some arrays from `start` on and log them in the journal; both are durable on return."""
        digests: dict[str, list[str]] = {name: [] for name in values}
        stop = start + max(map(len, values.values()))
        with self.files.fsyncing() as start_sync:
            for name, value in values.items():
                # Fewer than CHUNK rows can only be a whole clip, so the chunk length that follows from `stop` is right.
                grid = self.job.grid(name, stop)
                chunks = grid.chunks(start, stop)
                for chunk, data in zip(chunks, _blocks(value, grid), strict=True):
                    key = self.job.key(name, grid.file(chunk))
                    self.files.write(key, data)
                    start_sync(self.files.root / key)
                    digests[name].append(hashlib.sha256(data).hexdigest())
                    atomic_io.durable_step("chunk.written")
            atomic_io.durable_step(f"{kind}.written")
            logged = {name: tuple(hashes) for name, hashes in digests.items()}
            self.journal.append(FrameTableRecord((start, stop), logged) if kind == "frame_table"
                                else SegmentRecord((start, stop), logged))
            atomic_io.durable_step(f"{kind}.journaled")
            # One sync for chunks and journal: a record whose chunk a crash loses fails its digest on resuming.
            start_sync(self.journal.path)
        atomic_io.durable_step(f"{kind}.synced")
        for name, hashes in digests.items():
            self._chunks[name] += hashes

    def commit(self, **more: Any) -> ClipManifest:
        """Make the clip part of the store and return its manifest.

        `more`: JSON values to add to the manifest's provenance. Raises InputError if the frame table or some frames are
        missing.
        """
        if self._frame_table is None or self.written != self._rows_of(self._frame_table):
            length = "unknown" if self._frame_table is None else self._rows_of(self._frame_table)
            raise InputError(f"{self.written} frames are written, its length is {length}", where=self.job.clip,
                             hint="set the frame table and write every frame before the commit")
        frames = len(self._frame_table)
        arrays = {name: array_manifest(self.job.grid(name, frames if name == FRAME_TABLE else self.written),
                                       self._chunks[name]) for name in self.job.arrays}
        manifest = ClipManifest(clip=self.job.clip, fingerprint=self.job.fingerprint, frames=frames, arrays=arrays,
                                source=self.job.source, provenance={**self.job.provenance, **more})
        for name, array in arrays.items():
            # An interrupted run may have left files that no manifest covers, such as chunks of a longer clip.
            for stray in self.files.sizes(self.job.key(name)).keys() - {*array.grid.files(), META}:
                self.files.remove(self.job.key(name, stray))
            self.files.write(self.job.key(name, META), memoryview(array_document(name, array.grid)))
            atomic_io.durable_step("commit.array")
        self.files.fsync([self.job.folder, *map(self.job.key, arrays), *(self.job.key(n, META) for n in arrays)])
        atomic_io.durable_step("commit.unmarked")
        # The manifest makes the clip visible, so everything that it describes was synced above.
        self.files.replace(f"{self.job.folder}/{META}", manifest.document())
        atomic_io.durable_step("commit.marked")
        self.journal.remove()
        atomic_io.durable_step("commit.journal-gone")
        return manifest


def check_case_collision(files: StoreFiles, job: WriterJob) -> None:
    """Refuse a clip if the file system ignores case and shows another clip's folder under its name."""
    # A listing has the exact name of the folder; on such a file system, opening it by name works in any case.
    if job.folder not in files.folders():
        raise ClipError("its name differs from another clip's only in case, which this file system ignores",
                        where=job.clip, hint="rename one of them, or put the cache on another file system")


def check_embedded(table: NDArray[np.float64], clip: str) -> None:
    """Refuse a frame table ``(T, 10)`` that leaves the first or last frame of a tracklet or of a gap unembedded."""
    # Then the embedded frames around any other frame belong to the same unbroken run, and a reader that interpolates
    # between the two nearest ones crosses neither a gap nor a cut nor another person.
    columns = frame_columns(table.shape[1])
    valid, track, embedded = (table[:, columns.index(name)] for name in ("valid", "track", EMBEDDED))
    seen = valid > 0
    begins = np.append(True, (np.diff(track) != 0) | (np.diff(valid) != 0))
    ends = np.append(begins[1:], True)
    if (((begins | ends) & seen & (embedded == 0)).any() or not np.isin(embedded, (0, 1)).all()):
        raise InputError("the first or last frame of an unbroken run is not embedded", where=clip,
                         hint="embed both ends of every run of frames with the same track")


def _blocks(value: NDArray[Any], grid: Grid) -> Iterator[memoryview]:
    """Yield the bytes of each chunk's rows; the last chunk is padded with zeros."""
    for start in range(0, len(value), grid.rows):
        block = value[start:start + grid.rows]
        if len(block) < grid.rows:
            block = np.concatenate([block, np.zeros((grid.rows - len(block), *block.shape[1:]), block.dtype)])
        yield block.reshape(-1).view(np.uint8).data
