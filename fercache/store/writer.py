"""Writing one clip so that it can be killed at any moment and go on with the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError, InputError
from fercache.runtime import atomic_io
from fercache.store.journal import (
    DETECTION_COLUMNS,
    Journal,
    JournalState,
    RowRange,
    detection_record,
    range_record,
    read_journal_state,
)
from fercache.store.layout import FRAME_COLUMNS, FRAME_TABLE, META, SEGMENT, VERSION, Grid, array_document, encode_name
from fercache.store.local import TEMPORARY, StoreFiles
from fercache.store.manifest import ClipManifest, array_manifest, same_source


@dataclass(frozen=True, kw_only=True)
class WriterJob:
    """What is to be written: where, which arrays, and what the result depends on."""

    clip: str
    fingerprint: str
    taps: dict[str, tuple[int, ...]]
    source: dict[str, Any]
    provenance: dict[str, Any]

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

    def grid(self, array: str, frames: int) -> Grid:
        """Return how an array of so many frames lies in files."""
        if array == FRAME_TABLE:
            return Grid((frames, len(FRAME_COLUMNS)), "float64")
        return Grid((frames, *self.taps[array]), "float16")

    def record(self) -> dict[str, Any]:
        """Return the journal's first record."""
        return {"begin": self.clip, "version": VERSION, "fingerprint": self.fingerprint,
                "taps": {name: list(shape) for name, shape in self.taps.items()},
                "source": self.source, "provenance": self.provenance}

    def journal_state(self, records: list[dict[str, Any]]) -> JournalState | None:
        """Return what was done by a job that gives the same bytes as this one; None where another one was at it."""
        mine, other = self.record(), dict(records[0]) if records else {}
        source = other.pop("source", None)
        if not isinstance(source, dict) or not same_source(mine.pop("source"), source) or mine != other:
            return None
        return read_journal_state(records[1:], list(self.taps), FRAME_TABLE)


class ClipWriter:
    """One clip on its way: detections, clock and segments are durable when the call that gives them returns.

    Attributes
    ----------
    detected : rows whose detections are kept, also by an earlier run.
    written : rows whose features are on disk and were found unharmed.

    Notes
    -----
    Feature files are written in place, and the journal says what they hold; a file that no record vouches for, or that
    differs from its record, is written again. The mark comes last, when all else has reached the disk.
    """

    def __init__(self, files: StoreFiles, journal: Journal, job: WriterJob) -> None:
        self.files, self.journal, self.job = files, journal, job
        self.detected = self.written = 0
        self._detections: list[NDArray[np.float64]] = []
        self._frame_table: NDArray[np.float64] | None = None
        self._chunks: dict[str, list[str]] = {name: [] for name in job.arrays}
        past = job.journal_state(journal.records)
        if past is None:
            self._begin()
        else:
            self._resume(past)

    def _begin(self) -> None:
        """Start from nothing, also where other work on the clip was left."""
        self.journal.remove()
        atomic_io.durable_step("begin.journal-gone")
        self.files.remove_tree(self.job.folder)
        atomic_io.durable_step("begin.folder-gone")
        self._make_folders()
        atomic_io.durable_step("begin.folders")
        self.journal.append(self.job.record())
        atomic_io.durable_step("begin.journaled")

    def _make_folders(self) -> None:
        self.files.make_folders(self.job.key(name) for name in self.job.arrays)

    def _resume(self, past: JournalState) -> None:
        """Take over what was done, as far as the files agree with the journal."""
        for name in self.files.sizes(self.job.folder):
            if name.startswith(TEMPORARY):
                self.files.remove(f"{self.job.folder}/{name}")
        self._make_folders()
        self.detected, self._detections = past.detected, past.detections
        clock = None if past.frame_table is None else self._is_intact(past.frame_table)
        if clock is not None:
            data = b"".join(clock)[:self.job.grid(FRAME_TABLE,
                                                  1).row_bytes * past.frame_table.stop] if past.frame_table else b""
            self._frame_table = np.frombuffer(data, "<f8").reshape(-1, len(FRAME_COLUMNS)).astype(np.float64)
        for segment in past.segments:
            if segment.start != self.written or self._is_intact(segment) is None:
                break
            self.written = segment.stop
        atomic_io.durable_step("resume.read")

    def _is_intact(self, run: RowRange) -> list[bytearray] | None:
        """Count a run's chunks as written and return their bytes; None where one is missing or has changed."""
        found = []
        for name, digests in run.chunks.items():
            grid = self.job.grid(name, run.stop)
            chunks = _chunks_of(grid, run.start, run.stop)
            if len(chunks) != len(digests):
                return None
            for chunk, digest in zip(chunks, digests, strict=True):
                data = bytearray(grid.chunk_bytes)
                whole = self.files.fill(self.job.key(name, grid.file(chunk)), memoryview(data))
                if not whole or hashlib.sha256(data).hexdigest() != digest:
                    return None
                found.append(data)
        for name, digests in run.chunks.items():
            self._chunks[name] += digests
        return found

    def keep_detections(self, stop: int, rows: NDArray[np.float64]) -> None:
        """Keep what was detected in the frames from `detected` up to row `stop`.

        Parameters
        ----------
        rows : (n, 6) float64: row from 0, x1, y1, x2, y2, score; no row for a frame without a face.
        """
        if stop <= self.detected or rows.ndim != 2 or rows.shape[1] != DETECTION_COLUMNS:
            raise InputError(f"detections {rows.shape} up to row {stop} do not follow row {self.detected}",
                             where=self.job.clip)
        self.journal.append(detection_record(stop, rows))
        self.journal.sync()
        atomic_io.durable_step("detections.kept")
        self._detections.append(rows.astype(np.float64))
        self.detected = stop

    def detections(self) -> NDArray[np.float64]:
        """Return all that was kept, ``(M, 6)``: row from 0, x1, y1, x2, y2, score."""
        return np.concatenate([np.empty((0, DETECTION_COLUMNS)), *self._detections])

    @property
    def frame_table(self) -> NDArray[np.float64] | None:
        """The clock, ``(T, 9)``, if it was set."""
        return None if self._frame_table is None else self._frame_table.copy()

    def set_frame_table(self, clock: NDArray[np.float64]) -> None:
        """Store the clock, ``(T, 9)`` with the columns of CLOCK; from here on the clip's length is known."""
        if clock.ndim != 2 or clock.shape[1] != len(FRAME_COLUMNS) or len(clock) < max(self.written, 1):
            raise InputError(f"a clock of shape {clock.shape} does not fit {self.written} written frames",
                             where=self.job.clip, hint=f"give one row a frame with columns {', '.join(FRAME_COLUMNS)}")
        self._chunks[FRAME_TABLE] = []
        self._put("frame_table", 0, {FRAME_TABLE: np.ascontiguousarray(clock, "<f8")})
        self._frame_table = clock.astype(np.float64)

    def write(self, start: int, values: dict[str, NDArray[np.float16]]) -> None:
        """Write one segment: rows `start` to ``start + n`` of every tap, ``(n, ...) float16`` each.

        Notes
        -----
        Segments follow each other and are SEGMENT rows long, the last one at most.
        """
        rows = self._check(start, values)
        self._put("segment", start, {tap: np.ascontiguousarray(value, "<f2") for tap, value in values.items()})
        self.written = start + rows

    def _check(self, start: int, values: dict[str, NDArray[np.float16]]) -> int:
        """Return the rows of a segment; refuse one that does not fit."""
        if values.keys() != self.job.taps.keys():
            raise InputError(f"got taps {sorted(values)}, the store holds {sorted(self.job.taps)}", where=self.job.clip)
        shapes = {tap: value.shape[1:] for tap, value in values.items()}
        lengths = {len(value) for value in values.values()}
        if len(lengths) > 1 or shapes != self.job.taps or any(v.dtype != np.float16 for v in values.values()):
            raise InputError(f"segment of {shapes} is not float16 of the store's shapes {self.job.taps}",
                             where=self.job.clip)
        rows = lengths.pop()
        end = start + SEGMENT if self._frame_table is None else min(start + SEGMENT, len(self._frame_table))
        if start != self.written or start % SEGMENT or not rows or start + rows > end:
            raise InputError(f"rows {start} to {start + rows} do not follow row {self.written}", where=self.job.clip,
                             hint=f"write segments of {SEGMENT} rows in order; only the last one is shorter")
        return rows

    def _put(self, kind: str, start: int, values: dict[str, NDArray[Any]]) -> None:
        """Write rows of some arrays from `start` on, note them in the journal, and sync all of that."""
        digests: dict[str, list[str]] = {name: [] for name in values}
        with self.files.fsyncing() as settle:
            for name, value in values.items():
                grid = self.job.grid(name, start + len(value))
                chunks = _chunks_of(grid, start, start + len(value))
                for chunk, data in zip(chunks, _blocks(value, grid), strict=True):
                    key = self.job.key(name, grid.file(chunk))
                    self.files.write(key, data)
                    settle(self.files.root / key)
                    digests[name].append(hashlib.sha256(data).hexdigest())
                    atomic_io.durable_step("chunk.written")
            atomic_io.durable_step(f"{kind}.written")
            self.journal.append(range_record(kind, RowRange(start, start + len(value), digests)))
            atomic_io.durable_step(f"{kind}.journaled")
            settle(self.journal.path)
        atomic_io.durable_step(f"{kind}.synced")
        for name, made in digests.items():
            self._chunks[name] += made

    def commit(self, **more: Any) -> ClipManifest:
        """Make the clip part of the store and return its mark.

        Parameters
        ----------
        more : JSON values that the mark's provenance states beside the job's own.

        Raises
        ------
        InputError
            Clock or frames are missing.
        """
        if self._frame_table is None or self.written != len(self._frame_table):
            length = "unknown" if self._frame_table is None else len(self._frame_table)
            raise InputError(f"{self.written} frames are written, its length is {length}", where=self.job.clip,
                             hint="set the clock and write every frame before the commit")
        arrays = {name: array_manifest(self.job.grid(name, self.written), self._chunks[name])
                  for name in self.job.arrays}
        mark = ClipManifest(clip=self.job.clip, fingerprint=self.job.fingerprint, frames=self.written, arrays=arrays,
                    source=self.job.source, provenance={**self.job.provenance, **more})
        for name, array in arrays.items():
            self._finish(name, array.grid)
        self.files.fsync([self.job.folder, *map(self.job.key, arrays), *(self.job.key(n, META) for n in arrays)])
        atomic_io.durable_step("commit.unmarked")
        self.files.replace(f"{self.job.folder}/{META}", mark.document())
        atomic_io.durable_step("commit.marked")
        self.journal.remove()
        atomic_io.durable_step("commit.journal-gone")
        return mark

    def _finish(self, name: str, grid: Grid) -> None:
        """Write an array's metadata, and remove what an interrupted run left beside its chunks."""
        for stray in self.files.sizes(self.job.key(name)).keys() - {*grid.files(), META}:
            self.files.remove(self.job.key(name, stray))
        self.files.write(self.job.key(name, META), memoryview(array_document(name, grid)))
        atomic_io.durable_step("commit.array")


def check_case_collision(files: StoreFiles, job: WriterJob) -> None:
    """Refuse a clip where the file system, blind to case, shows another one's folder under its name.

    Raises
    ------
    ClipError
        Where that is so.
    """
    if job.folder not in files.folders():
        raise ClipError("its name differs from another clip's only in case, which this file system does not tell",
                        where=job.clip, hint="rename one of them, or put the cache on another file system")


def _chunks_of(grid: Grid, start: int, stop: int) -> range:
    """Return the chunks that hold rows `start` to `stop`; `start` begins one."""
    return range(start // grid.rows, -(-stop // grid.rows))


def _blocks(value: NDArray[Any], grid: Grid) -> Iterator[memoryview]:
    """Yield the bytes of each chunk's rows; the last chunk is padded with zeros."""
    for start in range(0, len(value), grid.rows):
        block = value[start:start + grid.rows]
        if len(block) < grid.rows:
            block = np.concatenate([block, np.zeros((grid.rows - len(block), *block.shape[1:]), block.dtype)])
        yield block.reshape(-1).view(np.uint8).data
