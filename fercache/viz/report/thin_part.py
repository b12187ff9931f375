"""Drawing many frames with few points, honestly: of each stretch the smallest and the largest value are kept."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fercache.results.told_part import Told

STEPS = 250
"""A probability is drawn in so many steps: one byte, and half a step (.002) is less than a pixel."""
UNKNOWN = 255
BYTES_FIXED = 6
"""Bytes a point beside lines and strips: the time, the shares of wrong frames and of frames without a face."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Thin:
    """A clip as it is drawn: N points, each standing for a stretch of one or more frames.

    Attributes
    ----------
    time_s : (N + 1,) float32, where each stretch begins, and where the last one ends.
    low, high : (N, C) smallest and largest probability in each stretch, in 1 / STEPS; equal where it is one frame.
    strips : name -> (N,) the class that most frames of the stretch have, UNKNOWN where that is none.
    wrong, gap : (N,) share of frames told wrong, and without a face, in 1 / STEPS, rounded up: none is lost.
    """

    frames: int
    time_s: NDArray[np.float32]
    low: Bytes
    high: Bytes
    strips: dict[str, Bytes]
    wrong: Bytes
    gap: Bytes

    @property
    def whole(self) -> bool:
        """Whether every frame is drawn."""
        return len(self.wrong) == self.frames

    def packed(self) -> str:
        """Return the arrays one after the other, in base64: time, low, high (unless `whole`), strips, wrong, gap."""
        lines = [self.low] if self.whole else [self.low, self.high]
        arrays = [self.time_s.astype("<f4"), *lines, *self.strips.values(), self.wrong, self.gap]
        return base64.b64encode(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).decode()


def thin(told: Told, heads: dict[str, NDArray[np.integer]], most: int) -> Thin:
    """Return a clip drawn with at most `most` points.

    Parameters
    ----------
    heads : name -> (T,) the class that each head says.
    """
    frames, classes = told.shares.shape
    border = np.linspace(0, frames, min(frames, most) + 1).astype(np.int64)
    start, number = border[:-1], np.diff(border)
    strips = {"truth": told.label, "prediction": told.said, **heads}
    return Thin(frames=frames, time_s=np.append(told.time_s[start], _end(told.time_s)).astype(np.float32),
                low=_rounded(np.minimum.reduceat(told.shares, start)),
                high=_rounded(np.maximum.reduceat(told.shares, start)),
                strips={name: _most(values, start, classes) for name, values in strips.items()},
                wrong=_share(told.wrong, start, number), gap=_share(~told.valid, start, number))


def bytes_a_point(classes: int, strips: int) -> int:
    """Return how many bytes one point of a thinned clip takes, before base64."""
    return BYTES_FIXED + 2 * classes + strips


def points(lengths: Sequence[int], bytes_each: int, budget: int, most: int, least: int) -> int:
    """Return the largest number of points a clip, between `least` and `most`, with which all clips fit `budget` bytes.
    """
    frames = np.array(lengths, np.int64)
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = np.minimum(frames, middle).sum() * bytes_each * 4 / 3 <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _end(time_s: NDArray[np.float64]) -> float:
    """Return where the last frame ends: as long after it as the usual frame is long."""
    step_s = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.04
    return float(time_s[-1]) + step_s


def _rounded(shares: NDArray[np.float64]) -> Bytes:
    return np.asarray(np.clip(np.rint(shares * STEPS), 0, STEPS), np.uint8)


def _share(mask: NDArray[np.bool_], start: NDArray[np.int64], number: NDArray[np.int64]) -> Bytes:
    return np.asarray(np.ceil(np.add.reduceat(mask.astype(np.int64), start) / number * STEPS), np.uint8)


def _most(values: NDArray[np.integer], start: NDArray[np.int64], classes: int) -> Bytes:
    """Return the class that is most frequent in each stretch, of equals the first."""
    if len(start) == len(values):
        return np.asarray(np.where(values < 0, UNKNOWN, values), np.uint8)
    each = np.where(values < 0, classes, values)[:, None] == np.arange(classes + 1)
    found = np.add.reduceat(each.astype(np.int32), start).argmax(1)
    return np.asarray(np.where(found == classes, UNKNOWN, found), np.uint8)
