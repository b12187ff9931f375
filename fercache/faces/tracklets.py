"""Faces linked over frames into tracklets by overlap of their boxes.

A tracklet ends wherever two people may have changed places, so that `identity.py` can join tracklets by the face.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_IOU = 0.3  # least IoU of a face with the last box of a tracklet to continue the tracklet
SAME_IOU = 0.5  # least IoU at which two boxes in one picture are the same face, detected twice
NONE = -1


def matched(overlap: Floats) -> Ints:
    """Return for each column of `overlap` (m, n) its matched row, -1 for none; greedy, the largest overlap first."""
    place = np.full(overlap.shape[1], NONE, np.int64)
    remaining = overlap.copy()
    while remaining.size:
        i, j = np.unravel_index(remaining.argmax(), remaining.shape)
        if remaining[i, j] < MIN_IOU:
            break
        place[j] = i
        remaining[i, :] = remaining[:, j] = NONE  # each row and each column matches once
    return place


def iou(a: Floats, b: Floats) -> Floats:
    """Return the intersection over union (m, n) of boxes (m, 4) and (n, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    union = area(a)[:, None] + area(b)[None] - both
    # Two boxes without area have no union: their overlap is 0, not NaN.
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def area(boxes: Floats) -> Floats:
    """Return the area (n,) of boxes (n, 4)."""
    return np.asarray((boxes[:, 2:4] - boxes[:, :2]).clip(0).prod(axis=1))


BOX_STEPS = 16  # boxes are rounded to 1 / BOX_STEPS px, since MTCNN's noise between batches is at most 1e-4 px
SCORE_DIGITS = 4


def rounded_faces(faces: Floats) -> Floats:
    """Return faces (n, 5 or 15) with coordinates and score rounded."""
    rounded = (faces * BOX_STEPS).round() / BOX_STEPS
    rounded[:, 4] = faces[:, 4].round(SCORE_DIGITS)
    return np.asarray(rounded)


def apart(a: Floats, b: Floats) -> Floats:
    """Return the distance (n,) between the centers of boxes (n, 4) and (n, 4), in sizes of the face in `b`."""
    distance = np.abs((a[:, :2] + a[:, 2:4] - b[:, :2] - b[:, 2:4]) / 2).max(axis=1)
    return np.asarray(distance / np.sqrt(np.maximum(area(b), 1)))


# Linking.

PEOPLE_VERSION = 2
"""Increased whenever the code assigns boxes to persons differently. Version 1 linked by overlap only."""
MAX_GAP = 15  # frames without a face that a tracklet survives: half a second, in which the detector may miss the face
COMPETITOR_IOU = 0.5
"""Fraction of the best overlap from which another one competes: position then does not decide which is which."""
NEAR = 1.0  # distance, in face sizes, within which a new face may be one that was lost a moment ago


@dataclass(frozen=True, kw_only=True)
class Tracklets:
    """The faces of a clip and the S tracklets that they form; a tracklet is one face as far as position decides."""

    frames: int  # T
    # `frame`, `faces`, `tracklet`: of each face: its row (M,), box and score and perhaps landmarks (M, 5 or 15), the
    # number of its tracklet (M,).
    frame: Ints
    faces: Floats
    tracklet: Ints
    links: Ints  # (E, 2) tracklets; the second continues the first by the largest overlap, but a competitor exists
    competitors: Ints  # (E', 2) tracklets that may continue each other by position; includes `links`

    @property
    def count(self) -> int:
        """Number of tracklets, S."""
        return int(self.tracklet.max()) + 1 if len(self.tracklet) else 0

    def sizes(self) -> Ints:
        """Return the number of frames of each tracklet, (S,)."""
        return np.bincount(self.tracklet, minlength=self.count)

    def weight(self) -> Floats:
        """Return the sum of area x score of each tracklet, (S,)."""
        return np.asarray(np.bincount(self.tracklet, area(self.faces) * self.faces[:, 4], self.count), np.float64)

    def size(self) -> Floats:
        """Return the mean side of the faces of each tracklet, (S,), in pixels."""
        total = np.bincount(self.tracklet, np.sqrt(area(self.faces)), self.count)
        return np.asarray(total / np.maximum(self.sizes(), 1))

    def together(self) -> Bools:
        """Return (S, S) whether two tracklets share a frame, which proves that they are two people."""
        shared = np.zeros((self.count, self.count), bool)
        edges = np.flatnonzero(np.diff(self.frame, prepend=-1, append=-1))
        for start, stop in pairwise(edges):
            if stop - start > 1:
                shared[np.ix_(self.tracklet[start:stop], self.tracklet[start:stop])] = True
        np.fill_diagonal(shared, False)
        return shared


def link_tracklets(detections: Sequence[Floats], cuts: Collection[int] = ()) -> Tracklets:
    """Return the tracklets of a clip's faces, numbered in the order in which they begin.

    `detections`: faces of each frame, (n, 5): x1, y1, x2, y2, score; or (n, 15) with landmarks. `cuts`: first row of
    each new scene; no tracklet crosses one.
    """
    # Greedy: of the tracklets seen within the last MAX_GAP frames and the faces of a frame, the pair with the largest
    # overlap is linked first. Where another face or tracklet overlaps by COMPETITOR_IOU of that, a new tracklet begins;
    # another one begins when the competitor is gone. So the frames in which two people may be swapped form a tracklet
    # of their own.
    linker, breaks = _Linker(), set(cuts)
    numbers = []
    for t, faces in enumerate(detections):
        if t in breaks:
            linker.keep(np.zeros(len(linker.ids), bool))
        if len(faces):
            numbers.append(linker.assign(t, faces[:, :4]))
    counts = [len(faces) for faces in detections]
    links, competitors = (np.array(sorted(pairs), np.int64).reshape(-1, 2)
                          for pairs in (linker.links, linker.competitors))
    # The empty arrays give clips without a face the right shape and type.
    return Tracklets(frames=len(detections), frame=np.repeat(np.arange(len(detections)), counts), links=links,
                     competitors=competitors,
                     faces=np.concatenate([np.empty((0, detections[0].shape[1] if len(detections) else 5)),
                                           *(faces for faces in detections if len(faces))]),
                     tracklet=np.concatenate([np.empty(0, np.int64), *numbers]))


@dataclass
class _Linker:
    """The live tracklets: those that a face of the next frame may continue."""

    # `boxes`, `last_rows`, `ids`: last box, its row and the number of each live tracklet.
    boxes: Floats = field(default_factory=lambda: np.empty((0, 4)))
    last_rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    ids: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    # Ambiguous live tracklet -> the tracklets that it may continue.
    ambiguous: dict[int, set[int]] = field(default_factory=dict)
    begun: int = 0
    links: set[tuple[int, int]] = field(default_factory=set)
    competitors: set[tuple[int, int]] = field(default_factory=set)

    def keep(self, which: Bools) -> None:
        """End all live tracklets but these."""
        self.boxes, self.last_rows, self.ids = self.boxes[which], self.last_rows[which], self.ids[which]

    def assign(self, t: int, boxes: Floats) -> Ints:
        """Return the tracklet (n,) of each face of frame `t`."""
        self.keep(t - self.last_rows <= MAX_GAP + 1)
        overlap = iou(self.boxes, boxes)
        place = matched(overlap)
        numbers = np.array([self._tracklet_of(overlap, place, j, boxes[j]) for j in range(len(boxes))], np.int64)
        unmatched = np.ones(len(self.ids), bool)
        unmatched[place[place != NONE]] = False
        self.keep(unmatched)  # matched ones come back below, with their new box
        self.boxes = np.concatenate([self.boxes, boxes])
        self.last_rows = np.concatenate([self.last_rows, np.full(len(boxes), t)])
        self.ids = np.concatenate([self.ids, numbers])
        return numbers

    def _tracklet_of(self, overlap: Floats, place: Ints, j: int, box: Floats) -> int:
        """Return the tracklet of face `j`: the one it continues, or a new one."""
        i = place[j]
        if i == NONE:
            # A fast face may overlap nothing: a tracklet lost close by competes, and the identity vector decides later.
            lost = np.setdiff1d(np.arange(len(self.ids)), place)
            close = apart(self.boxes[lost], np.broadcast_to(box, (len(lost), 4))) <= NEAR
            return self._begin(set(self.ids[lost[close]].tolist()))
        before = int(self.ids[i])
        competitors = self._competitors(overlap, i, j)
        if competitors:
            if before in self.ambiguous:
                self.ambiguous[before] |= competitors - {before}
                return before
            number = self._begin({before, *competitors}, before)
            self.ambiguous[number] = {before, *competitors}
            return number
        if before in self.ambiguous:  # the competitor is gone: whoever this is now gets a tracklet of their own
            return self._begin({before, *self.ambiguous[before]}, before)
        return before

    def _competitors(self, overlap: Floats, i: int, j: int) -> set[int]:
        """Return the tracklets that face `j` may continue instead of tracklet `i`; `i` too if another face competes."""
        least = max(COMPETITOR_IOU * overlap[i, j], COMPETITOR_IOU * MIN_IOU)
        competitors = {int(self.ids[k]) for k in np.flatnonzero(overlap[:, j] >= least) if k != i}
        if (np.delete(overlap[i], j) >= least).any():
            competitors.add(int(self.ids[i]))
        return competitors

    def _begin(self, competitors: set[int], link: int = NONE) -> int:
        """Return the number of a new tracklet, which may continue `competitors`, and most likely `link`."""
        number, self.begun = self.begun, self.begun + 1
        self.competitors |= {(before, number) for before in competitors}
        if link != NONE:
            self.links.add((link, number))
        return number
