"""Reading one clip: whole arrays or an error, never zeros in place of missing chunks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.errors import InputError, NotInStore
from fercache.store.layout import EMBEDDED, FRAME_TABLE, SEGMENT, Grid, encode_name, frame_columns, is_sparse
from fercache.store.manifest import ClipManifest, damaged
from fercache.store.remote import StoreFiles


@cache
def _row_type(columns: int) -> np.dtype[np.void]:
    """Return the type of a row of a frame table; making it takes as long as reading a short one."""
    return np.dtype([(name, "<f8") for name in frame_columns(columns)])


@dataclass(frozen=True, kw_only=True)
class FrameInterpolation:
    """How the values of T frames follow from those of the embedded ones: linearly in time between rows of the array."""

    # (T,) rows of the array: the last embedded frame and the next one, which are the same in an embedded frame.
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float32]  # (T,) of `high`
    seen: NDArray[np.bool_]  # (T,) whether there is a face; other frames have zeros

    @classmethod
    def of(cls, table: NDArray[np.void], causal: bool) -> FrameInterpolation:
        """Return that of a frame table with the column `embedded`; with `causal` the last embedded frame is repeated.
        """
        # Both ends of every unbroken run are embedded (the writer checks it): nothing is interpolated across a gap.
        embedded, seen, time_s = table[EMBEDDED] > 0, table["valid"] > 0, table["time_s"]
        low = np.maximum(np.cumsum(embedded) - 1, 0)
        high = low if causal else np.minimum(low + ~embedded, embedded.sum() - 1)
        start_s, stop_s = (time_s[embedded][rows] for rows in (low, high))
        weight = np.divide(time_s - start_s, stop_s - start_s, out=np.zeros(len(table)), where=stop_s > start_s)
        return cls(low=low, high=high, weight=weight.astype(np.float32), seen=seen)


class Tap:
    """One array of a clip, ``(T, ...)``: index it like NumPy, whose arrays it returns."""
    # Reads the chunks' files straight into memory. Zarr itself would cost about a millisecond per chunk, and would
    # return the fill value for a missing one. The property `zarr` is the same array for other tools, which
    # has rows of the embedded frames only.

    def __init__(self, files: StoreFiles, key: str, grid: Grid, between: FrameInterpolation | None = None) -> None:
        self.files, self.key = files, key
        self.grid, self.between = grid, between
        self.shape = grid.shape if between is None else (len(between.low), *grid.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(self.grid.dtype)
        self._checked = False

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Tap {self.key} {self.shape} {self.dtype}>"

    def __getitem__(self, index: Any) -> Any:
        """Return what NumPy would return for the whole array; a row or a slice reads only the chunks it needs."""
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if isinstance(first, int | np.integer):
            row = range(len(self))[int(first)]
            return self.rows(row, row + 1)[(0, *rest)]
        if isinstance(first, slice):
            wanted = range(len(self))[first]
            low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
            return self.rows(low, high)[(slice(None, None, wanted.step), *rest)]
        return self.rows(0, len(self))[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self.rows(0, len(self))
        return whole if dtype is None else whole.astype(dtype)

    def rows(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the rows of frames `start` to `stop`, in `out` or as a new array.

        Raises StoreError if a chunk's file is missing or torn; InputError if the clip does not have these rows, or
        `out` has another shape or type.
        """
        if not 0 <= start <= max(start, stop) <= len(self):  # the last chunk is padded: past the end there are zeros
            raise InputError(f"rows {start} to {stop} of {len(self)}", where=self.key)
        # A part of a clip with a torn file elsewhere is refused too, and whoever reads all sees every file. Remote
        # objects are never torn, and a missing one fails when it is read, so the round trip is saved.
        if not (self._checked or self.files.is_remote or stop - start == len(self)):
            self.check()
        shape = (max(stop - start, 0), *self.shape[1:])
        if out is not None and (out.shape != shape or out.dtype != self.dtype):
            raise InputError(f"{out.dtype} {out.shape} cannot take {self.dtype} {shape}", where=self.key)
        if self.between is not None:
            out = np.empty(shape, self.dtype) if out is None else out
            for first in range(start, stop, SEGMENT):  # in parts, since float32 takes twice the memory
                self._interpolate(first, out[first - start:first - start + SEGMENT])
            return out
        return self._stored(start, stop, out)

    def _interpolate(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the rows of frames from `start` on."""
        assert self.between is not None
        part = slice(start, start + len(out))
        seen, weight = self.between.seen[part], self.between.weight[part]
        out[~seen] = 0
        if not seen.any():
            return
        low, high = self.between.low[part], self.between.high[part]
        first = int(low[seen].min())
        values = self._stored(first, int(high[seen].max()) + 1)
        out[seen] = values[low[seen] - first]
        moving = np.flatnonzero(seen & (weight > 0))
        fraction = weight[moving].reshape(-1, *(1,) * (self.ndim - 1))
        before, after = (values[rows[moving] - first].astype(np.float32) for rows in (low, high))
        out[moving] = before + fraction * (after - before)

    def _stored(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return rows of the array, in `out` or as a new array."""
        shape = (max(stop - start, 0), *self.shape[1:])
        direct = out is not None and out.flags.c_contiguous and out.dtype.isnative and sys.byteorder == "little"
        rows = out if out is not None and direct else np.empty(shape, self.dtype.newbyteorder("<"))
        view = rows.reshape(-1).view(np.uint8).data
        size, grid = self.grid.row_bytes, self.grid
        parts = []
        for chunk in grid.chunks(start, stop):
            low, high = max(start, chunk * grid.rows), min(stop, (chunk + 1) * grid.rows)
            parts.append((f"{self.key}/{grid.file(chunk)}", view[(low - start) * size:(high - start) * size],
                          (low - chunk * grid.rows) * size))
        failed = self.files.fill_all(parts, grid.chunk_bytes)
        if failed is not None:
            raise damaged("a chunk is missing or torn", f"{self.files.root}/{failed}")
        if out is None or direct:
            return rows
        out[...] = rows
        return out

    def check(self) -> None:
        """Check that the file of every chunk exists and has its full length.

        Raises StoreError if a chunk is missing or torn.
        """
        sizes = self.files.sizes(self.key)
        for key in self.grid.files():
            if sizes.get(key) != self.grid.chunk_bytes:
                raise damaged("a chunk is missing or torn", f"{self.files.root}/{self.key}/{key}")
        self._checked = True

    @property
    def zarr(self) -> Any:
        """The array as Zarr opens it, read-only, after `check`."""
        import zarr  # takes half a second, and fercache itself reads without it

        self.check()
        place = self.files.root / self.key
        return zarr.open_array(str(place) if self.files.is_remote else place, mode="r")


class Clip(Mapping[str, Tap]):
    """One committed clip of T = `frames` frames: tap -> array; `causal` is that of its store."""

    def __init__(self, files: StoreFiles, manifest: ClipManifest, causal: bool = False) -> None:
        self.files, self.manifest, self.causal = files, manifest, causal
        self.name, self.frames = manifest.clip, manifest.frames

    def __repr__(self) -> str:
        return f"<Clip {self.name!r}: {self.frames} frames of {', '.join(self)}>"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.manifest.arrays.keys() - {FRAME_TABLE}))

    def __len__(self) -> int:
        return len(self.manifest.arrays) - 1

    def __getitem__(self, tap: str) -> Tap:
        if tap not in self.manifest.arrays:
            raise NotInStore(f"no tap {tap!r}", where=self.name, hint=f"it has {', '.join(self)}")
        return Tap(self.files, f"{encode_name(self.name)}/{encode_name(tap)}", self.manifest.arrays[tap].grid,
                   None if tap == FRAME_TABLE else self._between)

    @cached_property
    def _between(self) -> FrameInterpolation | None:
        """What gives the frames that are not embedded; None if all are."""
        sparse = is_sparse(self.manifest.arrays[FRAME_TABLE].shape[1])
        return FrameInterpolation.of(self.frame_table, self.causal) if sparse else None

    @property
    def frame_table(self) -> NDArray[np.void]:
        """The frame table, ``(T,)`` with named columns: ``clip.frame_table["time_s"]`` is ``(T,) float64``."""
        rows = self[FRAME_TABLE].rows(0, self.frames)
        return rows.view(_row_type(rows.shape[1]))[:, 0]

    def read(self, tap: str, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Return a whole tap, ``(T, ...) float16``, in `out` if it is given; files are read straight into it."""
        return self[tap].rows(0, self.frames, out)
