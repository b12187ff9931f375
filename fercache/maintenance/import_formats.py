"""One clip on its way in, whatever file it is in: distrusted, turned into float16 on a frame clock, segment by segment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.errors import ClipError
from fercache.store.layout import CLOCK, CLOCK_NAME, SEGMENT

WIDEST = 1 << 17
"""Most values of one frame of one tap."""
LONGEST = 5_000_000
"""Most frames of a clip: 46 hours at 30 frames a second."""
SPARSEST = 1000
"""Most frames of a clip for each frame that is given, past SPARSE_FROM of them: a slip of a digit fills no disk."""
SPARSE_FROM = 200_000
FEATURES = "features"
"""Name of the tap where a file names none."""
NO_TRACK, TRACK = -1.0, 0.0


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """One clip of a file.

    Attributes
    ----------
    frames : (n,) int64, the frame number of each row that the file gives, from 1, ascending.
    taps : shape of one row of each.
    read : tap, first row, last row + 1 -> those rows; asked for in ascending order.
    clock : (T, 9) where the file holds one.
    """

    frames: NDArray[np.int64]
    taps: dict[str, tuple[int, ...]]
    read: Callable[[str, int, int], NDArray[Any]]
    clock: NDArray[np.float64] | None = None

    def length(self) -> int:
        """Return T, the highest frame."""
        return int(self.frames[-1]) if self.clock is None else len(self.clock)

    def check(self, name: str) -> None:
        """Refuse what makes no clip.

        Raises
        ------
        ClipError
            No rows, frames that are no numbering, values that no store can hold.
        """
        if not len(self.frames):
            raise ClipError("holds no frame", where=name)
        check_frames(self.frames, name)
        if not self.taps or CLOCK_NAME in self.taps or "" in self.taps:
            raise ClipError(f"its arrays are {', '.join(map(repr, self.taps)) or 'none'}", where=name,
                            hint=f"give each array a name other than {CLOCK_NAME!r}")
        for tap, shape in self.taps.items():
            check_shape(tap, shape, name)
        if self.clock is not None:
            check_clock(self.clock, self.frames, name)

    def on_clock(self, fps: float) -> NDArray[np.float64]:
        """Return the clock, ``(T, 9)``: the file's, else frames `fps` a second, valid where a row is given."""
        if self.clock is not None:
            return self.clock
        count = self.length()
        given = np.zeros(count, bool)
        given[self.frames - 1] = True
        blank = np.full((count, 4), np.nan)
        return np.column_stack([np.arange(1, count + 1), np.arange(count) / fps, given, blank,
                                np.full(count, np.nan), np.where(given, TRACK, NO_TRACK)]).astype(np.float64)

    def segments(self, start: int, name: str) -> Iterator[dict[str, NDArray[np.float16]]]:
        """Yield the features of segments from row `start` of the clock on; zeros where no row is given."""
        for first in range(start, self.length(), SEGMENT):
            stop = min(first + SEGMENT, self.length())
            low, high = np.searchsorted(self.frames, [first + 1, stop + 1])
            made = {tap: np.zeros((stop - first, *shape), np.float16) for tap, shape in self.taps.items()}
            for tap, rows in made.items():
                if high > low:
                    given = self.read(tap, int(low), int(high))
                    rows[self.frames[low:high] - 1 - first] = to_half(given, (int(high - low), *self.taps[tap]), tap,
                                                                      self.frames[low:high], name)
            yield made


@dataclass(frozen=True)
class Entry:
    """A clip's name, and how to open it; opening may raise a ClipError."""

    name: str
    open: Callable[[], AbstractContextManager[Incoming]]


def check_frames(frames: NDArray[np.int64], name: str) -> None:
    """Refuse frame numbers that are not ascending from 1 on, or far beyond what is given."""
    first, last = int(frames[0]), int(frames[-1])
    steps = np.diff(frames)
    if first < 1:
        raise ClipError(f"has a frame {first}", where=name, hint="frames count from 1: add 1 to each")
    if (steps <= 0).any():
        at = int(frames[1:][steps <= 0][0])
        what = "twice" if (steps == 0).any() else "out of order"
        raise ClipError(f"has frame {at} {what}", where=name, hint="give each frame once, in ascending order")
    if last > LONGEST or last > max(SPARSE_FROM, SPARSEST * len(frames)):
        raise ClipError(f"has a frame {last}, but only {len(frames)} frames are given", where=name,
                        hint="check the frame numbers")


def check_shape(tap: str, shape: tuple[int, ...], name: str) -> None:
    """Refuse a shape of a row that no store takes."""
    if not shape or min(shape) < 1 or math.prod(shape) > WIDEST:
        raise ClipError(f"{tap!r} has rows of shape {shape}", where=name,
                        hint=f"rows hold 1 to {WIDEST} values each")


def check_clock(clock: NDArray[np.float64], frames: NDArray[np.int64], name: str) -> None:
    """Refuse a clock that does not count the frames."""
    if clock.ndim != 2 or clock.shape[1] != len(CLOCK) or len(clock) != len(frames):
        raise ClipError(f"a clock of shape {clock.shape} does not fit {len(frames)} frames", where=name)
    counted = np.arange(1, len(frames) + 1)
    if not (frames == counted).all() or not (clock[:, 0] == counted).all() or not np.isfinite(clock[:, 1]).all():
        raise ClipError("its clock does not count 1, 2, 3, ... or lacks times", where=name,
                        hint="leave the clock out, and give frame numbers alone")


def to_half(given: NDArray[Any], shape: tuple[int, ...], tap: str, frames: NDArray[np.int64],
            name: str) -> NDArray[np.float16]:
    """Return rows as float16.

    Raises
    ------
    ClipError
        They have another shape, are no numbers, NaN, infinite, or beyond what float16 can hold.
    """
    if given.shape != shape or given.dtype.kind not in "fiu":
        raise ClipError(f"{tap!r} gives {given.dtype} {given.shape}, not numbers {shape}", where=name)
    with np.errstate(over="ignore", invalid="ignore"):
        made = given.astype(np.float16)
    bad = ~np.isfinite(made).reshape(len(made), -1).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        why = "beyond 65504, the largest number of float16" if np.isfinite(given[row]).all() else "NaN or infinite"
        raise ClipError(f"{tap!r} has a value that is {why}, in frame {int(frames[row])}", where=name,
                        hint="scale the features" if "float16" in why else "leave frames without features out")
    return made


def numbers_of(keys: list[str], name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return frame numbers and keys such as ``00001`` or ``00001.jpg``, ascending."""
    found = []
    for key in keys:
        stem = key.partition(".")[0]
        if not (stem.isascii() and stem.isdigit() and len(stem) < 12):
            raise ClipError(f"has a frame called {key!r}", where=name, hint="frames are numbers: 00001, 00002, ...")
        found.append((int(stem), key))
    found.sort()
    return np.array([number for number, _ in found], np.int64), [key for _, key in found]


def ascending(given: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return frame numbers that a file gives as an array."""
    if given.ndim != 1 or given.dtype.kind not in "iuf" or (given.dtype.kind == "f" and (given % 1 != 0).any()):
        raise ClipError(f"its frame numbers are {given.dtype} {given.shape}, not a list of whole numbers", where=name)
    if len(given) and (given.min() < -2**53 or given.max() > 2**53):
        raise ClipError("its frame numbers are beyond all bounds", where=name)
    return given.astype(np.int64)
