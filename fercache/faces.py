"""Faces in pictures, found by MTCNN as boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fercache.cores import spread
from fercache.crops import reduced
from fercache.mtcnn import Mtcnn

BATCH = 8
BATCH_PIXELS = BATCH << 21
"""Pixels of the largest batch: 16 bytes a pixel are held of all of it."""
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
        scale = [min(1.0, self.detect_px / max(image.shape[:2])) if self.detect_px else 1.0 for image in images]
        seen = [image if part == 1 else reduced(image, part) for image, part in zip(images, scale, strict=True)]
        batches = [batch for shape, places in _by_size(images).items()
                   for batch in self._batches(seen[places[0]].shape, scale[places[0]], places)]
        results = run(lambda batch: self.net(scale[batch[0]]).detect(np.stack([seen[i] for i in batch])),
                      batches, self.device)
        for batch, faces in zip(batches, results, strict=True):
            for place, one in zip(batch, faces, strict=True):
                found[place] = self._kept(one / [*[scale[place]] * 4, 1], images[place].shape[:2])
        return found

    def net(self, scale: float = 1.0) -> Mtcnn:
        """Return MTCNN for pictures of that scale."""
        smallest = self._smallest(scale)
        if smallest not in self.nets:
            self.nets[smallest] = Mtcnn(smallest, self.device)
        return self.nets[smallest]

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


def _by_size(images: Sequence[NDArray[np.uint8]]) -> dict[tuple[int, int], list[int]]:
    """Return the positions of the pictures of each (height, width)."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault((image.shape[0], image.shape[1]), []).append(place)
    return places
