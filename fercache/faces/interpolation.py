"""Faces of every frame from a detector that looks at some: in between they are followed, or looked for if unsure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fercache.faces.tracklets import MIN_IOU, NONE, SAME_IOU, iou, match

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Picture = NDArray[np.uint8]

SURE_IOU = 0.6
"""Least IoU of a face at the two ends of a span to assume that it moved in a straight line."""
SURE_SCORE = 0.97
"""A face that scores less at either end is looked for in between: it may be turning away, or be none."""
CUT = 24.0
"""Mean difference of gray values that means a shot boundary between two frames, or a jump of one face."""
GRAIN_PX, FACE_PX = 48, 16
"""Pixels that are compared: on the longer side of a picture for shot boundaries, on each side of a face for jumps."""
INTERPOLATION_VERSION = 3
"""Changed whenever followed boxes come out otherwise: 2 looked at the face itself for jumps, 3 looks around doubtful
faces before it looks at the whole picture."""
STEPS = 16
"""Interpolated boxes are rounded to 1 / STEPS px, as detected ones are."""
SCORE_DIGITS = 4


class FaceDetector(Protocol):
    """A detector, which finds the faces (n, 5) of pictures: x1, y1, x2, y2 in pixels and the score."""

    def detect(self, pictures: Sequence[Picture]) -> Sequence[Floats]:
        """Return the faces of each picture."""

    def detect_in_rois(self, pictures: Sequence[Picture], places: Sequence[Floats]) -> Sequence[Floats]:
        """Return the faces of each picture at and around some places in it, boxes (n, 4)."""

    def rois_per_frame(self, picture: Picture) -> int:
        """Return around how many places it can look while it looks at the whole picture."""


def interpolate_faces(images: Sequence[Picture | None], looker: FaceDetector, every: int) -> list[Floats]:
    """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; none where there is no picture.

    Parameters
    ----------
    images : consecutive frames.
    every : the detector looks at every so many-th frame and at the last one; 1 is each frame.

    Notes
    -----
    Between two frames that were looked at, a face moves in a straight line, if at both ends it is there, overlaps
    itself by SURE_IOU and scores SURE_SCORE, and what the moved box shows changes nowhere at once. A face of which one
    of these does not hold is looked for in the frame in the middle (where it changes at once: there), around the places
    where it is at the ends, and so on: in the worst case in each frame. The detector looks at the whole frame where
    that takes less time; where a face is not found that both ends have; in the frame before the first, and after the
    last, in which a face is found; and on both sides of a cut.
    """
    rows = [row for row, image in enumerate(images) if image is not None]
    found = [np.empty((0, 5)) for _ in images]
    followed = _Block([image for image in images if image is not None], looker).interpolated(every)
    for row, faces in zip(rows, followed, strict=True):
        found[row] = faces
    return found


class UncertainSpan(NamedTuple):
    """Faces (n, 5) in frames `start` and `stop` that are not surely the same; they are looked for in frame `row`."""

    start: int
    stop: int
    row: int
    first: Floats
    last: Floats

    def alike(self) -> Floats:
        """Return where the faces that are the same by place should be, boxes (n, 4)."""
        place = match(self.first[:, :4], self.last[:, :4])
        way = interpolate_boxes(self.first[place[place != NONE]], self.last[place != NONE], self.start, self.stop)
        return way[self.row][:, :4]

    def places(self) -> Floats:
        """Return the boxes (n, 4) to look around: those of `alike`, and each other face's own."""
        place = match(self.first[:, :4], self.last[:, :4])
        alone = np.setdiff1d(np.arange(len(self.first)), place)
        return np.concatenate([self.alike(), self.first[alone, :4], self.last[place == NONE, :4]])

    def lacks(self, faces: Floats) -> bool:
        """Return whether one that should be in frame `row` is not among its `faces`."""
        return bool((match(faces[:, :4], self.alike()) == NONE).any())


@dataclass
class _Block:
    """Consecutive pictures, and what is known of them.

    Attributes
    ----------
    seen : the faces of the pictures that were looked at as a whole.
    added : to other pictures bit by bit, faces that were followed or found around places.
    doubts : what it was that a picture was looked at for, last.
    unsure : pictures beside which a face is that they seem not to have.
    """

    images: list[Picture]
    detector: FaceDetector
    detected: dict[int, Floats] = field(default_factory=dict)
    added: dict[int, list[Floats]] = field(default_factory=lambda: defaultdict(list))
    uncertain: dict[int, UncertainSpan] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)

    def interpolated(self, every: int) -> list[Floats]:
        """Return the faces of each picture."""
        count = len(self.images)
        ends = {*range(0, count, every), count - 1} if count else set()
        if every > 1:
            ends |= {row for cut in self._cuts() for row in (cut - 1, cut)}
        self._look(sorted(ends))
        spans = [span for start, stop in pairwise(sorted(ends))
                  for span in self._moved(start, stop, self.detected[start], self.detected[stop])]
        while spans or self.unsure:
            now = {span.row: span for span in spans}
            later = [span for span in spans if now[span.row] is not span]
            found = self._found(list(now.values()))
            spans = later + [part for span, faces in found for part in self._divided(span, faces)] + self._revealed()
        return [self.detected[i] if i in self.detected else self._of(i) for i in range(count)]

    def _look(self, rows: list[int]) -> None:
        """Have the detector look at some pictures."""
        self.detected.update(zip(rows, self.detector.detect([self.images[i] for i in rows]), strict=True))

    def _of(self, row: int) -> Floats:
        """Return what was added to a picture, (n, 5)."""
        return np.concatenate([np.empty((0, 5)), *self.added[row]])

    def _divided(self, span: UncertainSpan, faces: Floats) -> list[UncertainSpan]:
        """Return what is left of a doubt when `faces` were found in its frame."""
        return [*self._moved(span.start, span.row, span.first, faces),
                *self._moved(span.row, span.stop, faces, span.last)]

    def _moved(self, start: int, stop: int, first: Floats, last: Floats) -> list[UncertainSpan]:
        """Add the faces of which the way between two frames is sure, and return the doubt that is left, if any."""
        if stop - start < 2:
            self.unsure |= {row for row, faces in ((start, last), (stop, first))
                            if row not in self.detected and len(_others(faces, self._of(row), MIN_IOU))}
            return []
        place, sure = _pairs(first, last)
        moved = interpolate_boxes(first[place[sure]], last[sure], start, stop)
        jumps = self._jumps({start: first[place[sure]], **moved, stop: last[sure]}, start, stop)
        still = jumps == NONE
        for row, faces in moved.items():
            self.added[row].append(_others(faces[still], self._of(row)))
        sure = sure[still]
        first, last = np.delete(first, place[sure], 0), np.delete(last, sure, 0)
        if not len(first) and not len(last):
            return []
        row = (start + stop) // 2 if still.all() else min(int(jumps[~still].min()), stop - 1)
        return [UncertainSpan(start, stop, row, first, last)]

    def _jumps(self, faces: dict[int, Floats], start: int, stop: int) -> Ints:
        """Return for each face the first frame whose box does not show what the frame before's does; NONE for never."""
        jumps, last = np.full(len(faces[start]), NONE), _face_grid(self.images[start], faces[start])
        for row in range(start + 1, stop + 1):
            now = _face_grid(self.images[row], faces[row])
            jumps[(np.abs(now - last).mean(axis=(1, 2)) > CUT) & (jumps == NONE)] = row
            last = now
        return jumps

    def _found(self, spans: list[UncertainSpan]) -> list[tuple[UncertainSpan, Floats]]:
        """Return of each doubt the faces in its frame: around where they may be, else in the whole picture."""
        self.uncertain |= {span.row: span for span in spans}
        places = {span.row: span.places() for span in spans if span.row not in self.detected}
        around = [row for row, boxes in places.items() if len(boxes) <= self.detector.rois_per_frame(self.images[row])]
        near = self.detector.detect_in_rois([self.images[row] for row in around], [places[row] for row in around])
        found = {row: _others(faces, self._of(row)) for row, faces in zip(around, near, strict=True)}
        self._look([span.row for span in spans if span.row not in self.detected
                    and (span.row not in found or span.lacks(found[span.row]))])
        for row in {span.row for span in spans} & self.detected.keys():
            found[row] = _others(self.detected[row], self._of(row))
        for row, faces in found.items():
            self.added[row].append(faces)
        return [(span, found[span.row]) for span in spans]

    def _revealed(self) -> list[UncertainSpan]:
        """Look at the whole of frames beside which a face is that they seem not to have; return what comes of it."""
        rows, self.unsure = sorted(self.unsure - self.detected.keys()), set()
        self._look(rows)
        spans = []
        for row in rows:
            faces = _others(self.detected[row], self._of(row))
            if len(faces):
                self.added[row].append(faces)
                spans += self._divided(self.uncertain[row], faces)
        return spans

    def _cuts(self) -> list[int]:
        """Return the pictures that differ from the one before as after a cut."""
        found = ShotBoundaryDetector()
        for row, image in enumerate(self.images):
            found.see(row, image)
        return found.rows


def _others(faces: Floats, known: Floats, overlap: float = SAME_IOU) -> Floats:
    """Return those of `faces` (n, 5) that are none of the `known` ones (m, 5), which overlap them by so much."""
    return faces[(iou(known[:, :4], faces[:, :4]) < overlap).all(axis=0)]


class ShotBoundaryDetector:
    """Collects in `rows` the first row of each new scene, from the pictures passed to `see` in order."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._last: NDArray[np.float32] | None = None
        self._shape: tuple[int, ...] = ()

    def see(self, row: int, image: Picture | None) -> None:
        """Compare the next picture with the last one; None is skipped. A change of resolution is a boundary too."""
        if image is None:
            return
        grain, last = _grain(image), self._last
        if last is not None and (image.shape != self._shape or np.abs(grain - last).mean() > CUT):
            self.rows.append(row)
        self._last, self._shape = grain, image.shape


def _grain(image: Picture) -> NDArray[np.float32]:
    """Return a coarse gray picture: a grid of pixels of the green channel (most of the luminance)."""
    step = max(1, max(image.shape[:2]) // GRAIN_PX)
    return image[::step, ::step, 1].astype(np.float32)


def _face_grid(image: Picture, faces: Floats) -> NDArray[np.float32]:
    """Return a coarse gray picture of each face, (n, FACE_PX, FACE_PX)."""
    steps = (np.arange(FACE_PX) + 0.5) / FACE_PX
    x, y = (np.clip((faces[:, [low]] + (faces[:, [low + 2]] - faces[:, [low]]) * steps).astype(np.int64), 0, most - 1)
            for low, most in ((0, image.shape[1]), (1, image.shape[0])))
    return np.asarray(image[y[:, :, None], x[:, None, :], 1], np.float32)


def _pairs(first: Floats, last: Floats) -> tuple[Ints, Ints]:
    """Return for each face of `last` its place in `first`, NONE for none; and the faces of which that is sure."""
    place = match(first[:, :4], last[:, :4])
    pair = np.flatnonzero(place != NONE)
    alike = iou(first[:, :4], last[:, :4])[place[pair], pair] >= SURE_IOU
    return place, pair[alike & (np.minimum(first[place[pair], 4], last[pair, 4]) >= SURE_SCORE)]


def interpolate_boxes(first: Floats, last: Floats, start: int, stop: int) -> dict[int, Floats]:
    """Return the faces (n, 5) of each row between two, boxes and scores interpolated linearly and rounded."""
    interpolated = {}
    for i in range(start + 1, stop):
        fraction = (i - start) / (stop - start)
        faces = (1 - fraction) * first + fraction * last
        faces[:, :4] = (faces[:, :4] * STEPS).round() / STEPS
        faces[:, 4] = faces[:, 4].round(SCORE_DIGITS)
        interpolated[i] = faces
    return interpolated
