"""Faces of every frame from a detector that runs on some frames only; boxes in between are interpolated.

`select_frames` chooses the faces that the CNN embeds; the reader of a store interpolates between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fercache.faces.tracklets import NONE, SAME_IOU, Floats, Ints, iou, matched, rounded_faces

Picture = NDArray[np.uint8]

SURE_IOU = 0.6  # least IoU of a face at the two ends of a span to assume that it moved in a straight line
SURE_SCORE = 0.97  # least score at both ends; a face with a lower one may be turning away, or be a false detection
CUT = 24.0  # mean difference of gray values that means a shot boundary between two frames, or a jump of one face
GRAIN_PX, FACE_PX = 48, 16
"""Pixels that are compared: on the longer side of a picture for shot boundaries, on each side of a face for jumps."""
INTERPOLATION_VERSION = 4
"""Increased whenever interpolated boxes change: 2 compares the pixels of the face to find jumps, 3 detected uncertain
faces in regions of interest, 4 detects them in whole frames."""


Detect = Callable[[Sequence[Picture]], Sequence[Floats]]
"""Returns the faces (n, 5) of pictures: x1, y1, x2, y2 in pixels and the score."""


def interpolate_faces(images: Sequence[Picture | None], detect: Detect, every: int, columns: int = 5) -> list[Floats]:
    """Return the faces of consecutive frames, (n, 5): x1, y1, x2, y2 in pixels and the score; none without a picture.

    `every`: interval of the frames that the detector always sees, besides the last one; 1 means every frame. `columns`:
    of the detector's faces: 5, or 15 with landmarks, which are interpolated as boxes are.
    """
    # Between two detected frames, a face is interpolated linearly if it is in both, overlaps itself by SURE_IOU, scores
    # SURE_SCORE in both, and the pixels in the moved box never jump. For any other face the detector runs on the frame
    # in the middle (or on the frame of the jump), and both halves are treated the same way. The detector also sees both
    # sides of a shot boundary, so nothing is interpolated across it.
    rows = [row for row, image in enumerate(images) if image is not None]
    faces = [np.empty((0, columns)) for _ in images]
    block = _Block([image for image in images if image is not None], detect, columns)
    for row, faces_of_row in zip(rows, block.interpolated(every), strict=True):
        faces[row] = faces_of_row
    return faces


class UncertainSpan(NamedTuple):
    """Faces (n, 5) of the rows `start` and `stop` that may not be the same; the detector must run on `row` between."""

    start: int
    stop: int
    row: int
    first: Floats
    last: Floats


class _Block:
    """Consecutive pictures with their faces."""

    def __init__(self, images: list[Picture], detect: Detect, columns: int) -> None:
        self.images, self.detect, self.columns = images, detect, columns
        self.detected: dict[int, Floats] = {}  # row -> faces (n, 5)
        self.interpolated_faces: dict[int, list[Floats]] = defaultdict(list)  # row -> faces in parts (n, 5)

    def interpolated(self, every: int) -> list[Floats]:
        """Return the faces of each picture."""
        count = len(self.images)
        ends = {*range(0, count, every), count - 1} if count else set()
        if every > 1:
            boundaries = ShotBoundaryDetector()
            for row, image in enumerate(self.images):
                boundaries.see(row, image)
            ends |= {row for boundary in boundaries.rows for row in (boundary - 1, boundary)}
        self._detect(sorted(ends))
        spans = [span for start, stop in pairwise(sorted(ends))
                 for span in self._interpolate(start, stop, self.detected[start], self.detected[stop])]
        while spans:  # the rows of a round are detected together, in full batches
            self._detect([span.row for span in spans])
            spans = [part for span in spans for part in self._split(span)]
        return [self.detected[row] if row in self.detected else self._faces_of(row) for row in range(count)]

    def _detect(self, rows: list[int]) -> None:
        """Run the detector on some pictures."""
        self.detected.update(zip(rows, self.detect([self.images[row] for row in rows]), strict=True))

    def _faces_of(self, row: int) -> Floats:
        """Return the interpolated faces of a picture, (n, 5)."""
        return np.concatenate([np.empty((0, self.columns)), *self.interpolated_faces[row]])

    def _split(self, span: UncertainSpan) -> list[UncertainSpan]:
        """Return what remains uncertain on both sides of the row of `span`, which is now detected."""
        # Faces that an earlier round interpolated through this row are settled: only the others are uncertain.
        faces = _without(self.detected[span.row], self._faces_of(span.row))
        return [*self._interpolate(span.start, span.row, span.first, faces),
                *self._interpolate(span.row, span.stop, faces, span.last)]

    def _interpolate(self, start: int, stop: int, first: Floats, last: Floats) -> list[UncertainSpan]:
        """Interpolate the faces that surely continue between two rows, and return the uncertain rest, if any."""
        if stop - start < 2:  # no row in between
            return []
        place, sure = _pairs(first, last)
        moved = interpolate_boxes(first[place[sure]], last[sure], start, stop)
        jumps = self._jumps({start: first[place[sure]], **moved, stop: last[sure]}, start, stop)
        smooth = jumps == NONE
        for row, faces in moved.items():
            # An earlier round may have interpolated the same face through this row.
            self.interpolated_faces[row].append(_without(faces[smooth], self._faces_of(row)))
        sure = sure[smooth]
        first, last = np.delete(first, place[sure], 0), np.delete(last, sure, 0)
        if not len(first) and not len(last):
            return []
        # Detect right at the first jump: halving the span would need several rounds to find it.
        row = (start + stop) // 2 if smooth.all() else min(int(jumps[~smooth].min()), stop - 1)
        return [UncertainSpan(start, stop, row, first, last)]

    def _jumps(self, faces: dict[int, Floats], start: int, stop: int) -> Ints:
        """Return for each face the first row whose pixels in the box differ from the previous row's; NONE if none."""
        jumps, last = np.full(len(faces[start]), NONE), _face_grid(self.images[start], faces[start])
        for row in range(start + 1, stop + 1):
            now = _face_grid(self.images[row], faces[row])
            jumps[(np.abs(now - last).mean(axis=(1, 2)) > CUT) & (jumps == NONE)] = row
            last = now
        return jumps


def _without(faces: Floats, others: Floats) -> Floats:
    """Return those of `faces` (n, 5) that are the same as none of `others` (m, 5)."""
    return faces[(iou(others[:, :4], faces[:, :4]) < SAME_IOU).all(axis=0)]


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
        step = max(1, max(image.shape[:2]) // GRAIN_PX)
        # A coarse gray picture: a grid of pixels of the green channel, which is most of the luminance.
        grain, last = image[::step, ::step, 1].astype(np.float32), self._last
        if last is not None and (image.shape != self._shape or np.abs(grain - last).mean() > CUT):
            self.rows.append(row)
        self._last, self._shape = grain, image.shape


def _face_grid(image: Picture, faces: Floats) -> NDArray[np.float32]:
    """Return a coarse gray picture of each face, (n, FACE_PX, FACE_PX)."""
    steps = (np.arange(FACE_PX) + 0.5) / FACE_PX
    x, y = (np.clip((faces[:, [low]] + (faces[:, [low + 2]] - faces[:, [low]]) * steps).astype(np.int64), 0, most - 1)
            for low, most in ((0, image.shape[1]), (1, image.shape[0])))
    return np.asarray(image[y[:, :, None], x[:, None, :], 1], np.float32)


def _pairs(first: Floats, last: Floats) -> tuple[Ints, Ints]:
    """Return for each face of `last` its index in `first`, NONE for none; and the indices of `last` that are sure."""
    overlap = iou(first[:, :4], last[:, :4])
    place = matched(overlap)
    pair = np.flatnonzero(place != NONE)
    scores = np.minimum(first[place[pair], 4], last[pair, 4])
    return place, pair[(overlap[place[pair], pair] >= SURE_IOU) & (scores >= SURE_SCORE)]


def interpolate_boxes(first: Floats, last: Floats, start: int, stop: int) -> dict[int, Floats]:
    """Return the faces (n, 5) of each row between two, boxes and scores interpolated linearly and rounded."""
    fractions = {row: (row - start) / (stop - start) for row in range(start + 1, stop)}
    return {row: rounded_faces((1 - by) * first + by * last) for row, by in fractions.items()}


# Which frames the CNN embeds. A reader interpolates between two embedded frames, so both ends of every unbroken run of
# one face are embedded: the first frame after a gap, a cut or another face, and the last one before it.

EMBED_S = 0.2
"""Most seconds between two embedded frames of a run with `auto`: an expression begins or ends within a few tenths."""
EMBED_CHANGE = 8.0
"""Sum over skipped frames of the mean difference between the face's small picture and the interpolated one, from which
`auto` embeds. The sum lost less than the largest difference at equal cost: docs/results/extract.md."""
EMBED_SHARE = 0.4  # share of the frames that `auto` embeds, for estimates only
EMBED_VERSION = 1  # increased whenever other frames are embedded
SMALL_PX, SMALL_STD = 16, 50.0  # side and standard deviation of the small pictures


class Face(NamedTuple):
    """The face of one frame; `track` is NONE and `crops` is empty without one."""

    row: int
    time_s: float
    track: int
    crops: list[Picture]  # (S, S, 3), plain and augmented
    small: NDArray[np.float32] | None  # the small gray picture of the plain crop


def small_gray(crop: Picture) -> NDArray[np.float32]:
    """Return a crop (S, S, 3) as a small gray picture, (16, 16), of fixed brightness and contrast."""
    small = np.asarray(Image.fromarray(crop).convert("L").reduce(len(crop) // SMALL_PX), np.float32)
    return np.asarray((small - small.mean()) * (SMALL_STD / (small.std() + 3)))


def embedded_share(every: str) -> float:
    """Return about which part of the frames is embedded."""
    return EMBED_SHARE if every == "auto" else 1 / int(every)


def select_frames(faces: Iterable[Face], every: str) -> Iterator[Face]:
    """Yield those of all frames of a clip that are embedded, at least one.

    `every`: a number, or auto: a frame is embedded where the small pictures between it and the last embedded frame are
    not what linear interpolation gives, and after EMBED_S. With a number, and tracks that end at cuts, the small
    pictures may be missing.
    """
    first: Face | None = None  # of the clip, while no frame is embedded
    last: Face | None = None  # the last embedded frame of the run
    skipped: list[Face] = []  # the frames after it
    for number, face in enumerate(faces):
        first = face if not number else first
        if last is not None and (face.track != last.track or _is_cut((skipped or [last])[-1], face)):
            yield from skipped[-1:]
            last, skipped = None, []
        if face.track == NONE:
            continue
        first = None
        if last is None or (every != "auto" and face.row - last.row >= int(every)):
            yield face
            last, skipped = face, []
            continue
        if skipped and every == "auto" and _changes(last, skipped, face):
            yield skipped[-1]
            last, skipped = skipped[-1], []
        skipped.append(face)
    yield from skipped[-1:]
    if first is not None:  # no face at all, and a store has no empty arrays
        yield first


def _is_cut(before: Face, after: Face) -> bool:
    """Return whether two crops in a row show a cut, which folders of crops do not mark."""
    return (before.small is not None and after.small is not None
            and float(np.abs(after.small - before.small).mean()) > CUT)


def _changes(last: Face, skipped: Sequence[Face], face: Face) -> bool:
    """Return whether the frames between two are not what interpolation between these gives."""
    span_s = face.time_s - last.time_s
    if span_s > EMBED_S + 1e-6:
        return True
    assert last.small is not None and face.small is not None
    small = np.stack([one.small for one in skipped if one.small is not None])
    fraction = np.array([(one.time_s - last.time_s) / span_s for one in skipped], np.float32)[:, None, None]
    straight = last.small + fraction * (face.small - last.small)
    return float(np.abs(small - straight).mean(axis=(1, 2)).sum()) > EMBED_CHANGE
