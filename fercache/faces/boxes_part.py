"""Boxes of faces: how far two overlap, and which go on with which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_IOU = 0.3
"""Overlap with a track's last box from which a face goes on with the track."""
SAME_IOU = 0.5
"""Overlap from which two boxes of one picture are one face, found twice."""
NONE = -1


def match(old: Floats, new: Floats) -> Ints:
    """Return for each box of `new` (n, 4) the box of `old` (m, 4) that it goes on with, -1 for none."""
    return matched(iou(old, new))


def matched(overlap: Floats) -> Ints:
    """Return for each column of `overlap` (m, n) its row, -1 for none: the pair of the largest overlap comes first."""
    place = np.full(overlap.shape[1], NONE, np.int64)
    left = overlap.copy()
    while left.size:
        i, j = np.unravel_index(left.argmax(), left.shape)
        if left[i, j] < MIN_IOU:
            break
        place[j] = i
        left[i, :] = left[:, j] = NONE
    return place


def iou(a: Floats, b: Floats) -> Floats:
    """Return the overlap (m, n) of boxes (m, 4) and (n, 4): intersection over union."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    union = area(a)[:, None] + area(b)[None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def area(boxes: Floats) -> Floats:
    """Return the area (n,) of boxes (n, 4)."""
    return np.asarray((boxes[:, 2:4] - boxes[:, :2]).clip(0).prod(axis=1))


def apart(a: Floats, b: Floats) -> Floats:
    """Return how far the centres of boxes (n, 4) and (n, 4) are apart, (n,), in sizes of the face in `b`."""
    way = np.abs((a[:, :2] + a[:, 2:4] - b[:, :2] - b[:, 2:4]) / 2).max(axis=1)
    return np.asarray(way / np.sqrt(np.maximum(area(b), 1)))
