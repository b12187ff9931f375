"""Faces linked over frames by overlap, cut into pieces wherever two people may have changed places."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Boxes of faces: how far two overlap, and which go on with which.

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


# Who is who: faces linked over frames into pieces, and the pieces of one person joined, by the face or by place.

PEOPLE_VERSION = 2
"""Raised whenever the code changes whom boxes belong to. 1 linked by overlap alone."""


MAX_GAP = 15
"""Frames a track may be without a face: half a second, a blink of the detector, not a cut."""
COMPETITOR_IOU = 0.5
"""Share of the chosen overlap from which another one is a rival: which is which is then not told by place."""
NEAR = 1.0
"""Distance, in face sizes, within which a face that begins may be one that was lost a moment ago."""


@dataclass(frozen=True, kw_only=True)
class Tracklets:
    """The faces of a clip and the S pieces that they form: stretches of one face, as far as places tell.

    Attributes
    ----------
    frames : T.
    frame, faces, piece : of each face: its row (M,), box and score (M, 5), the number of its piece (M,).
    own : (E, 2) pieces of which the second goes on with the first by the largest overlap, though with a rival.
    near : (E', 2) pieces that may go on with each other by place; those of `own` among them.
    """

    frames: int
    frame: Ints
    faces: Floats
    tracklet: Ints
    links: Ints
    competitors: Ints

    @property
    def count(self) -> int:
        """Number of pieces, S."""
        return int(self.tracklet.max()) + 1 if len(self.tracklet) else 0

    def sizes(self) -> Ints:
        """Return how many frames each piece has, (S,)."""
        return np.bincount(self.tracklet, minlength=self.count)

    def weight(self) -> Floats:
        """Return the sum of area x score of each piece, (S,)."""
        return np.asarray(np.bincount(self.tracklet, area(self.faces) * self.faces[:, 4], self.count), np.float64)

    def size(self) -> Floats:
        """Return the mean side of the faces of each piece, (S,), in pixels."""
        return np.asarray(np.bincount(self.tracklet, np.sqrt(area(self.faces)), self.count) / np.maximum(self.sizes(),
                                                                                                         1))

    def together(self) -> Bools:
        """Return (S, S) whether two pieces are in one frame."""
        found = np.zeros((self.count, self.count), bool)
        edges = np.flatnonzero(np.diff(self.frame, prepend=-1, append=-1))
        for start, stop in pairwise(edges):
            if stop - start > 1:
                found[np.ix_(self.tracklet[start:stop], self.tracklet[start:stop])] = True
        np.fill_diagonal(found, False)
        return found


def link_tracklets(detections: Sequence[Floats], cuts: Collection[int] = ()) -> Tracklets:
    """Return the pieces that the faces of a clip form; they are numbered as they begin.

    Parameters
    ----------
    detections : faces of each frame, (n, 5): x1, y1, x2, y2, score.
    cuts : rows that another scene begins with; no piece goes over one.

    Notes
    -----
    Greedy: of the pieces seen within the last MAX_GAP frames and the faces of a frame, the pair of the largest overlap
    is linked first. Where another face or another piece overlaps by RIVAL of that, a new piece begins, and one more
    where the doubt has passed: a stretch in which two people may have been taken for each other stands alone.
    """
    linker, breaks = _Linker(), set(cuts)
    numbers = []
    for t, faces in enumerate(detections):
        if t in breaks:
            linker.forget()
        if len(faces):
            numbers.append(linker.take(t, faces[:, :4]))
    counts = [len(faces) for faces in detections]
    own, near = (np.array(sorted(pairs), np.int64).reshape(-1, 2) for pairs in (linker.links, linker.competitors))
    return Tracklets(frames=len(detections), frame=np.repeat(np.arange(len(detections)), counts), links=own,
                     competitors=near,
                  faces=np.concatenate([np.empty((0, 5)), *(faces for faces in detections if len(faces))]),
                  tracklet=np.concatenate([np.empty(0, np.int64), *numbers]))


@dataclass
class _Linker:
    """The pieces that a face of the next frame may go on with.

    Attributes
    ----------
    boxes, seen, ids : last box, row of it and number of each live piece.
    since : doubtful live piece -> the pieces that it may go on with.
    """

    boxes: Floats = field(default_factory=lambda: np.empty((0, 4)))
    seen: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    ids: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    since: dict[int, set[int]] = field(default_factory=dict)
    begun: int = 0
    links: set[tuple[int, int]] = field(default_factory=set)
    competitors: set[tuple[int, int]] = field(default_factory=set)

    def forget(self) -> None:
        """Let nothing go on."""
        self._keep(np.zeros(len(self.ids), bool))

    def _keep(self, which: Bools) -> None:
        self.boxes, self.seen, self.ids = self.boxes[which], self.seen[which], self.ids[which]

    def take(self, t: int, boxes: Floats) -> Ints:
        """Return the piece (n,) of each face of frame `t`."""
        self._keep(t - self.seen <= MAX_GAP + 1)
        overlap = iou(self.boxes, boxes)
        place = matched(overlap)
        numbers = np.array([self._piece(overlap, place, j, boxes[j]) for j in range(len(boxes))], np.int64)
        lost = np.ones(len(self.ids), bool)
        lost[place[place != NONE]] = False
        self._keep(lost)
        self.boxes = np.concatenate([self.boxes, boxes])
        self.seen = np.concatenate([self.seen, np.full(len(boxes), t)])
        self.ids = np.concatenate([self.ids, numbers])
        return numbers

    def _piece(self, overlap: Floats, place: Ints, j: int, box: Floats) -> int:
        """Return the piece of face `j`: the one it goes on with, or a new one."""
        i = place[j]
        if i == NONE:
            lost = np.setdiff1d(np.arange(len(self.ids)), place)
            close = apart(self.boxes[lost], np.broadcast_to(box, (len(lost), 4))) <= NEAR
            return self._begin(set(self.ids[lost[close]].tolist()))
        before = int(self.ids[i])
        rivals = self._competitors(overlap, i, j)
        if rivals:
            if before in self.since:
                self.since[before] |= rivals - {before}
                return before
            number = self._begin({before, *rivals}, before)
            self.since[number] = {before, *rivals}
            return number
        if before in self.since:
            return self._begin({before, *self.since[before]}, before)
        return before

    def _competitors(self, overlap: Floats, i: int, j: int) -> set[int]:
        """Return the pieces that face `j` may go on with instead of piece `i`, or that another face makes doubtful."""
        least = max(COMPETITOR_IOU * overlap[i, j], COMPETITOR_IOU * MIN_IOU)
        found = {int(self.ids[k]) for k in np.flatnonzero(overlap[:, j] >= least) if k != i}
        if (np.delete(overlap[i], j) >= least).any():
            found.add(int(self.ids[i]))
        return found

    def _begin(self, near: set[int], own: int = NONE) -> int:
        """Return the number of a new piece, which may go on with those `near`."""
        number, self.begun = self.begun, self.begun + 1
        self.competitors |= {(before, number) for before in near}
        if own != NONE:
            self.links.add((own, number))
        return number
