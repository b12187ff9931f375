"""Faces of every frame from a detector that looks at some: in between they are followed, or looked for if unsure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fercache.people import NONE, iou, match

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]
Detect = Callable[[Sequence[Picture]], Sequence[Floats]]

SURE_IOU = 0.6
"""Overlap of a face with itself some frames later from which it is believed to have moved straight."""
SURE_SCORE = 0.97
"""A face that scores less at either end is looked for in between: it may be turning away, or be none."""
CUT = 24.0
"""Mean difference of two frames' grey values from which a cut is between them; of one face's, from which it jumped."""
GRAIN_PX, FACE_PX = 48, 16
"""Pixels on the longer side of a picture, and on each side of a face, that are compared to find cuts and jumps."""
POLICY = 2
"""Changed whenever followed boxes come out otherwise: 2 looks at the face itself for jumps."""
STEPS = 16
"""Steps a pixel that followed boxes are rounded to, as detected ones are."""
SCORE_DIGITS = 4


def faces_of(images: Sequence[Picture | None], detect: Detect, every: int) -> list[Floats]:
    """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; none where there is no picture.

    Parameters
    ----------
    images : consecutive frames.
    detect : finds the faces of some pictures.
    every : it looks at every so many-th frame and at the last one; 1 is each frame.

    Notes
    -----
    Between two frames that were looked at, every face moves in a straight line, if the same faces are there at both
    ends, each overlaps itself by SURE_IOU, scores SURE_SCORE, and no cut lies between, of the scene or in what the
    moved box shows. Where one of these does not hold, the detector looks at the frame in the middle (at both sides of a
    cut), and so on: in the worst case at each.
    """
    rows = [row for row, image in enumerate(images) if image is not None]
    found = [np.empty((0, 5)) for _ in images]
    followed = _Block([image for image in images if image is not None], detect).followed(every)
    for row, faces in zip(rows, followed, strict=True):
        found[row] = faces
    return found


@dataclass
class _Block:
    """Consecutive pictures and what is known of them."""

    images: list[Picture]
    detect: Detect
    known: dict[int, Floats] = field(default_factory=dict)

    def followed(self, every: int) -> list[Floats]:
        """Return the faces of each picture."""
        last = len(self.images) - 1
        ends = sorted({*range(0, last, every), last}) if last >= 0 else []
        spans = list(zip(ends, ends[1:] or ends, strict=False))
        cuts = self._cuts() if every > 1 else []
        while spans:
            self._look(sorted({i for span in spans for i in span} - self.known.keys()))
            spans = [part for span in spans for part in self._divided(*span, cuts)]
        return [self.known[i] for i in range(last + 1)]

    def _look(self, places: list[int]) -> None:
        """Have the detector look at some pictures."""
        self.known.update(zip(places, self.detect([self.images[i] for i in places]), strict=True))

    def _divided(self, start: int, stop: int, cuts: list[int]) -> list[tuple[int, int]]:
        """Fill the frames between two known ones if that is sure, else return the spans to look at instead."""
        if stop - start < 2:
            return []
        cut = next((i for i in cuts if start < i <= stop), None)
        if cut is not None:
            return _about(cut, start, stop)
        pairs = _pairs(self.known[start], self.known[stop])
        if pairs is None:
            middle = (start + stop) // 2
            return [(start, middle), (middle, stop)]
        ends = {start: self.known[start][pairs], stop: self.known[stop]}
        moved = between(self.known[start], self.known[stop], pairs, start, stop)
        jump = self._jump({**ends, **moved}, start, stop)
        if jump is not None:
            return _about(jump, start, stop)
        self.known.update(moved)
        return []

    def _jump(self, faces: dict[int, Floats], start: int, stop: int) -> int | None:
        """Return the first frame whose boxes do not show what those of the frame before show; None where all do."""
        last = _shown(self.images[start], faces[start])
        for i in range(start + 1, stop + 1):
            now = _shown(self.images[i], faces[i])
            if (np.abs(now - last).mean(axis=(1, 2)) > CUT).any():
                return i
            last = now
        return None

    def _cuts(self) -> list[int]:
        """Return the pictures that differ from the one before as after a cut."""
        found = Cuts()
        for row, image in enumerate(self.images):
            found.see(row, image)
        return found.rows


def _about(row: int, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the span in three, so that the frames on both sides of a break before `row` are looked at."""
    return [(start, row - 1), (row - 1, row), (row, stop)]


class Cuts:
    """The rows that another scene begins with, in `rows`, as pictures go by in `see`."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._last: NDArray[np.float32] | None = None

    def see(self, row: int, image: Picture | None) -> None:
        """Take the next picture, None where there is none; a change of resolution is a cut too."""
        if image is None:
            return
        grain, last = _grain(image), self._last
        if last is not None and (grain.shape != last.shape or np.abs(grain - last).mean() > CUT):
            self.rows.append(row)
        self._last = grain


def _grain(image: Picture) -> NDArray[np.float32]:
    """Return a coarse grey picture: every so many-th pixel of green."""
    step = max(1, max(image.shape[:2]) // GRAIN_PX)
    return image[::step, ::step, 1].astype(np.float32)


def _shown(image: Picture, faces: Floats) -> NDArray[np.float32]:
    """Return a coarse grey picture of each face, (n, FACE_PX, FACE_PX)."""
    steps = (np.arange(FACE_PX) + 0.5) / FACE_PX
    x, y = (np.clip((faces[:, [low]] + (faces[:, [low + 2]] - faces[:, [low]]) * steps).astype(np.int64), 0, most - 1)
            for low, most in ((0, image.shape[1]), (1, image.shape[0])))
    return np.asarray(image[y[:, :, None], x[:, None, :], 1], np.float32)


def _pairs(first: Floats, last: Floats) -> NDArray[np.int64] | None:
    """Return for each face of `last` its place in `first`; None where it is not sure that they are the same."""
    if len(first) != len(last) or (len(first) and min(first[:, 4].min(), last[:, 4].min()) < SURE_SCORE):
        return None
    place = match(first[:, :4], last[:, :4])
    if (place == NONE).any():
        return None
    overlap = iou(first[:, :4], last[:, :4])[place, np.arange(len(last))]
    return place if (overlap >= SURE_IOU).all() else None


def between(first: Floats, last: Floats, pairs: NDArray[np.int64], start: int, stop: int) -> dict[int, Floats]:
    """Return the faces of the frames between `start` and `stop`, moved in a straight line, scores too; rounded."""
    found = {}
    for i in range(start + 1, stop):
        share = (i - start) / (stop - start)
        faces = (1 - share) * first[pairs] + share * last
        faces[:, :4] = (faces[:, :4] * STEPS).round() / STEPS
        faces[:, 4] = faces[:, 4].round(SCORE_DIGITS)
        found[i] = faces
    return found
