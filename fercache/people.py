"""Who is who: boxes linked over frames into tracks, and which of them are the main person of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_IOU = 0.3
"""Overlap with a track's last box from which a face goes on with the track."""
MAX_GAP = 15
"""Frames a track may be without a face: half a second, a blink of the detector, not a cut."""
MIN_RETURN = 5
"""Frames that a track must have to count as the main person come back; shorter ones are mostly no faces."""
MIN_RETURN_AREA = 0.2
"""Area, as a share of the main track's, under which a face that appears later is somebody in the background."""
NONE = -1


def main_person(detections: Sequence[Floats]) -> tuple[Floats, Floats, Ints]:
    """Return the main person's boxes (T, 4), NaN where there is none, scores (T,), and track numbers (T,), -1 for none.

    Parameters
    ----------
    detections : faces of each frame, (n, 5): x1, y1, x2, y2, score.

    Notes
    -----
    The main track has the largest sum of area x score over its frames. Where it is absent, another track may be the
    same person again, unless it was ever on screen together with a track of the main person, or continues one that
    was. Without a look at the face that is a guess, which errs towards frames without a person.
    """
    boxes = np.full((len(detections), 4), np.nan)
    score, number = np.full(len(detections), np.nan), np.full(len(detections), NONE, np.int64)
    frame, faces = _flat(detections)
    if len(frame):
        track = link(detections)
        mine = np.isin(track, choose(frame, faces, track))
        rows = frame[mine]
        boxes[rows], score[rows], number[rows] = faces[mine, :4], faces[mine, 4], track[mine]
    return boxes, score, number


def person_at(detections: Sequence[Floats], side: str) -> tuple[Floats, Floats, Ints]:
    """Return what `main_person` does, for the person on one side of a video with two.

    Parameters
    ----------
    detections : faces of each frame, (n, 5): x1, y1, x2, y2, score.
    side : "left" or "right" of the picture; "" for the main person.

    Notes
    -----
    The two are the main person and who is that among the other faces; their mean places over the frames that show both
    (else over all) decide who is on the left. Where two are never seen
    at once, they count as one person, who is on both sides.
    """
    first = main_person(detections)
    if not side:
        return first
    others = [faces[(faces[:, :4] != box).any(axis=1)] for faces, box in zip(detections, first[0], strict=True)]
    second = main_person(others)
    seen = [~np.isnan(boxes[:, 0]) for boxes in (first[0], second[0])]
    if not seen[1].any():
        return first
    both = seen[0] & seen[1]
    place = [(boxes[:, 0] + boxes[:, 2])[both if both.any() else own].mean()
             for boxes, own in ((first[0], seen[0]), (second[0], seen[1]))]
    return first if (place[0] <= place[1]) == (side == "left") else second


def link(detections: Sequence[Floats]) -> Ints:
    """Return the track number (M,) of every face, frame by frame; tracks are numbered as they begin.

    Notes
    -----
    Greedy: of the tracks seen within the last MAX_GAP frames and the faces of a frame, the pair of the largest overlap
    is linked first.
    """
    numbers: list[Ints] = [np.empty(0, np.int64)]
    live, seen, ids = np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, np.int64)
    begun = 0
    for t, faces in enumerate(detections):
        if not len(faces):
            continue
        fresh = t - seen <= MAX_GAP + 1
        live, seen, ids = live[fresh], seen[fresh], ids[fresh]
        place = match(live, faces[:, :4])
        new = place == NONE
        place[new] = len(live) + np.arange(new.sum())
        live, seen = np.concatenate([live, faces[new, :4]]), np.concatenate([seen, np.full(new.sum(), t)])
        ids = np.concatenate([ids, begun + np.arange(new.sum())])
        begun += int(new.sum())
        live[place], seen[place] = faces[:, :4], t
        numbers.append(ids[place])
    return np.concatenate(numbers)


def match(old: Floats, new: Floats) -> Ints:
    """Return for each box of `new` (n, 4) the box of `old` (m, 4) that it goes on with, -1 for none."""
    place = np.full(len(new), NONE, np.int64)
    overlap = iou(old, new)
    while overlap.size:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[i, j] < MIN_IOU:
            break
        place[j] = i
        overlap[i, :] = overlap[:, j] = NONE
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


def choose(frame: Ints, faces: Floats, track: Ints) -> Ints:
    """Return the numbers of the tracks that are the main person.

    Parameters
    ----------
    frame, faces, track : of every face: row (M,), box and score (M, 5), track number (M,).
    """
    known = _summary(frame, faces, track)
    mine = np.zeros(len(known.weight), bool)
    others = np.zeros_like(mine)
    order = np.argsort(-known.weight, kind="stable")
    main = order[0]
    for candidate in order:
        if candidate != main and not known.may_return(candidate, main, mine, others):
            continue
        mine[candidate] = True
        others |= known.together(candidate) & ~mine
    return np.flatnonzero(mine)


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What is known of each of S tracks: frames (S,), first and last box (S, 4), weight, mean area, frames held."""

    start: Ints
    stop: Ints
    first: Floats
    last: Floats
    weight: Floats
    size: Floats
    held: Ints

    def together(self, track: int) -> NDArray[np.bool_]:
        """Return (S,) whether each track was on screen in the span of `track`."""
        return np.asarray((self.start <= self.stop[track]) & (self.stop >= self.start[track]))

    def may_return(self, track: int, main: int, mine: NDArray[np.bool_], others: NDArray[np.bool_]) -> bool:
        """Return whether `track` can be the main person come back."""
        if others[track] or self.held[track] < MIN_RETURN or self.size[track] < MIN_RETURN_AREA * self.size[main]:
            return False
        if not others.any():
            return True
        away = self._distance(track)
        return bool(away[mine].min() <= away[others].min())

    def _distance(self, track: int) -> Floats:
        """Return (S,) how far, in face sizes, `track` begins from where each track ended, or the other way round."""
        later = self.start > self.stop[track]
        theirs = np.where(later[:, None], self.first, self.last)
        own = np.where(later[:, None], self.last[track], self.first[track])
        apart = np.abs((theirs[:, :2] + theirs[:, 2:] - own[:, :2] - own[:, 2:]) / 2).max(axis=1)
        return np.asarray(apart / np.sqrt(np.maximum(area(own), 1)))


def _summary(frame: Ints, faces: Floats, track: Ints) -> _Summary:
    """Return what is known of each track; faces come in order of their frames."""
    count = int(track.max()) + 1
    order = np.argsort(track, kind="stable")
    edges = np.searchsorted(track[order], np.arange(count + 1))
    first, last = order[edges[:-1]], order[edges[1:] - 1]
    held = np.diff(edges)
    covered = area(faces)
    return _Summary(start=frame[first], stop=frame[last], first=faces[first, :4], last=faces[last, :4], held=held,
                    weight=np.asarray(np.bincount(track, covered * faces[:, 4], count), np.float64),
                    size=np.bincount(track, covered, count) / held)


def _flat(detections: Sequence[Floats]) -> tuple[Ints, Floats]:
    """Return the row (M,) and the faces (M, 5) of all frames together."""
    counts = [len(faces) for faces in detections]
    frame = np.repeat(np.arange(len(detections)), counts)
    return frame, np.concatenate([np.empty((0, 5)), *(faces for faces in detections if len(faces))])
