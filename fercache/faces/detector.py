"""Faces in pictures, found by MTCNN as boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.faces.boxes_part import SAME_IOU, area, iou
from fercache.faces.crops import Square, cut_out, reduced, square_around
from fercache.faces.mtcnn_part import Mtcnn
from fercache.runtime.devices import spread

BATCH = 8
BATCH_PIXELS = BATCH << 21
"""Pixels of the largest batch: 16 bytes a pixel are held of all of it."""
NEAR_PX, NEAR_FACE_PX = 160, 40
"""Side of the squares that `near` looks at, and the smallest face in them that it looks for."""
AROUND = 2.2
"""Side of such a square, in sides of the face that is looked for."""
NEAR_BATCH = 32
PLACE_PIXELS = 200_000
"""Pixels of a picture, seen with the smallest face at NEAR_FACE_PX, that take as long as to look around one place."""
TRUNCATED_PX = np.array([1.5, 1.5, 0.5, 0.5])
"""How much too large MTCNN's x1, y1, x2, y2 come out, in pixels of the picture that it sees: its driver cuts candidates
at whole pixels (half a pixel less on average), and begins one further to the left and above."""
BOX_STEPS = 16
"""Steps a pixel that boxes are rounded to: MTCNN's noise between batches is at most 1e-4 px."""
SCORE_DIGITS = 4


class Detector:
    """MTCNN, made to look for faces of at least `min_face_px` and to keep those of at least `min_score`.

    Parameters
    ----------
    detect_px : pictures with a longer side than this are reduced to it first; 0 leaves them as they are.

    Notes
    -----
    Boxes move by up to 1e-4 px with what else is in the batch (callers fix that) and with the thread count (each
    batch has one thread here, and batches run side by side); boxes and scores are rounded.
    """

    def __init__(self, min_face_px: int = 40, min_score: float = 0.9, device: str = "cpu", batch: int = BATCH,
                 detect_px: int = 0) -> None:
        self.min_face_px, self.min_score, self.batch, self.detect_px = min_face_px, min_score, batch, detect_px
        self.device = device
        self.nets: dict[int, Mtcnn] = {}

    def detect(self, images: Sequence[NDArray[np.uint8]], run: Callable[..., list[Any]] = spread
               ) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; the largest first.

        Parameters
        ----------
        images : pictures (H, W, 3), of one size or of several.
        run : computes the batches, as `cores.spread` does.
        """
        found = [np.empty((0, 5)) for _ in images]
        scale = [self._scale(image) for image in images]
        seen = [image if part == 1 else reduced(image, part) for image, part in zip(images, scale, strict=True)]
        batches = [batch for shape, places in _by_size(images).items()
                   for batch in self._batches(seen[places[0]].shape, scale[places[0]], places)]
        results = run(lambda batch: self.net(scale[batch[0]]).detect(np.stack([seen[i] for i in batch])),
                      batches, self.device)
        for batch, faces in zip(batches, results, strict=True):
            for place, one in zip(batch, faces, strict=True):
                found[place] = self._kept(_enlarged(one, 1 / scale[place]), images[place].shape[:2])
        return found

    def near(self, images: Sequence[NDArray[np.uint8]], places: Sequence[NDArray[np.float64]],
             run: Callable[..., list[Any]] = spread) -> list[NDArray[np.float64]]:
        """Return the faces of each picture at and around some places in it, (n, 5) as `detect` does.

        Parameters
        ----------
        places : boxes (n, 4) of each picture.

        Notes
        -----
        A square around each place, `AROUND` faces wide, is brought to one size in which a face of the place's size is
        neither the smallest nor the largest that is looked for. That takes .6 of the time of a look at 640 x 360, a
        quarter of one at 720p, whatever else is in the picture (`tests/results/extract.md`). A face that a square cuts
        off is not told: MTCNN only guesses how it goes on.
        """
        least = NEAR_PX / NEAR_FACE_PX * self.min_face_px
        squares = [(place, square_around(box, max(AROUND * (box[2:] - box[:2]).max(), least), images[place].shape))
                   for place, boxes in enumerate(places) for box in boxes]
        seen = [cut_out(images[place], square, NEAR_PX) for place, square in squares]
        batches = [range(start, min(start + NEAR_BATCH, len(seen))) for start in range(0, len(seen), NEAR_BATCH)]
        results = run(lambda batch: self.close.detect(np.stack([seen[i] for i in batch])), batches, self.device)
        found: list[list[NDArray[np.float64]]] = [[np.empty((0, 5))] for _ in images]
        for (place, square), faces in zip(squares, chain.from_iterable(results), strict=True):
            left, top, side = square
            inside = faces[_inside(faces, square, images[place].shape)]
            found[place].append(_enlarged(inside, side / NEAR_PX) + np.array([left, top, left, top, 0]))
        return [_once(self._kept(np.concatenate(faces), image.shape[:2]))
                for faces, image in zip(found, images, strict=True)]

    def places(self, image: NDArray[np.uint8]) -> int:
        """Return around how many places `near` looks in the time that the whole picture takes: 4 at 720p, as it is."""
        height, width = image.shape[:2]
        scale = self._scale(image)
        cells = (NEAR_FACE_PX / self._smallest(scale)) ** 2
        return int(height * width * scale ** 2 * (1 + cells) / 2 / PLACE_PIXELS)

    @cached_property
    def close(self) -> Mtcnn:
        """MTCNN for what `near` looks at."""
        return Mtcnn(NEAR_FACE_PX, self.device)

    def net(self, scale: float = 1.0) -> Mtcnn:
        """Return MTCNN for pictures of that scale."""
        smallest = self._smallest(scale)
        if smallest not in self.nets:
            self.nets[smallest] = Mtcnn(smallest, self.device)
        return self.nets[smallest]

    def _scale(self, image: NDArray[np.uint8]) -> float:
        """Return what a picture is reduced to first, as a share of its size."""
        return min(1.0, self.detect_px / max(image.shape[:2])) if self.detect_px else 1.0

    def _smallest(self, scale: float) -> int:
        """Return the smallest face looked for, in pixels of the picture that MTCNN sees; its nets see 12 pixels."""
        return max(12, round(self.min_face_px * scale))

    def _batches(self, shape: tuple[int, ...], scale: float, places: list[int]) -> list[list[int]]:
        """Return the pictures at `places`, all of one size, in batches."""
        if min(shape[:2]) < self._smallest(scale):  # no scale of the pyramid is left
            return []
        step = max(1, min(self.batch, BATCH_PIXELS // (shape[0] * shape[1])))
        return [places[start:start + step] for start in range(0, len(places), step)]

    def _kept(self, faces: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the faces that count, rounded and inside the picture."""
        height, width = shape
        faces = faces[np.isfinite(faces).all(axis=1)]
        boxes = (faces[:, :4] * BOX_STEPS).round() / BOX_STEPS
        boxes = boxes.clip(0, [width, height, width, height])
        score = faces[:, 4].round(SCORE_DIGITS)
        whole = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        return np.column_stack([boxes, score])[whole & (score >= self.min_score)]


def _inside(faces: NDArray[np.float64], square: Square, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which faces (n, 5), in pixels of what was made of a square, are not cut off by it inside the picture."""
    left, top, side = square
    cuts = np.array([left > 0, top > 0, left + side < shape[1], top + side < shape[0]])
    over = np.column_stack([faces[:, :2] < 0, faces[:, 2:4] > NEAR_PX])
    return np.asarray(~(over & cuts).any(axis=1))


def _enlarged(faces: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Return faces (n, 5) that were found in a picture made smaller, in pixels of the picture."""
    return np.column_stack([(faces[:, :4] - TRUNCATED_PX) * by + TRUNCATED_PX, faces[:, 4]])


def _once(faces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the faces (n, 5) of a picture, of those that overlap the one that scores most; the largest first."""
    faces = faces[np.argsort(-faces[:, 4], kind="stable")]
    overlap, kept = iou(faces[:, :4], faces[:, :4]), list[int]()
    for i in range(len(faces)):
        if (overlap[i, kept] < SAME_IOU).all():
            kept.append(i)
    faces = faces[kept]
    return faces[np.argsort(-area(faces), kind="stable")]


def _by_size(images: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, int], list[int]]:
    """Return the positions of the pictures of each (height, width)."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault((image.shape[0], image.shape[1]), []).append(place)
    return places
