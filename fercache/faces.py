"""Faces in pictures, found by MTCNN as boxes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.cores import spread
from fercache.facenet import MTCNN

log = logging.getLogger(__name__)

BATCH = 8
BATCH_PIXELS = BATCH << 21
"""Pixels of the largest batch: MTCNN holds all of it as float32, 12 bytes a pixel."""
BOX_STEPS = 16
"""Steps a pixel that boxes are rounded to: MTCNN's noise between batches is at most 1e-4 px."""
SCORE_DIGITS = 4


class Detector:
    """MTCNN, made to look for faces of at least `min_face_px` and to keep those of at least `min_score`.

    Notes
    -----
    Boxes move by up to 1e-4 px with what else is in the batch (callers fix that) and with the thread count (each
    batch has one thread here, and batches run side by side); boxes and scores are rounded.
    """

    def __init__(self, min_face_px: int = 40, min_score: float = 0.9, device: str = "cpu", batch: int = BATCH) -> None:
        self.min_face_px, self.min_score, self.batch = min_face_px, min_score, batch
        self.device = device
        self.net = MTCNN(min_face_size=min_face_px, keep_all=True, device=torch.device(device)).eval()

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
        """Return the faces of each picture, (n, 5): x1, y1, x2, y2 in pixels and the score; the largest first.

        Parameters
        ----------
        images : pictures (H, W, 3), of one size or of several.
        """
        found = [np.empty((0, 5)) for _ in images]
        batches = [batch for shape, places in _by_size(images).items() for batch in self._batches(shape, places)]
        results = spread(lambda batch: self._batch(np.stack([images[i] for i in batch])), batches, self.device)
        for batch, faces in zip(batches, results, strict=True):
            for place, one in zip(batch, faces, strict=True):
                found[place] = self._kept(one, images[place].shape[:2])
        return found

    def _batches(self, shape: tuple[int, int], places: list[int]) -> list[list[int]]:
        """Return the pictures at `places`, all of one size, in batches."""
        if min(shape) < self.min_face_px:  # no scale of the pyramid is left; the library would fail
            return []
        step = max(1, min(self.batch, BATCH_PIXELS // (shape[0] * shape[1])))
        return [places[start:start + step] for start in range(0, len(places), step)]

    @torch.inference_mode()
    def _batch(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        """Return (n, 5) for each of the pictures (B, H, W, 3)."""
        try:
            boxes, scores = self.net.detect(pictures)
        except (RuntimeError, IndexError) as error:
            return self._one_by_one(pictures, error)
        return [np.empty((0, 5)) if one is None else np.column_stack([one, score]).astype(np.float64)
                for one, score in zip(boxes, scores, strict=True)]

    def _one_by_one(self, pictures: NDArray[np.uint8], error: Exception) -> list[NDArray[np.float64]]:
        """Return what `_batch` does after the library failed on a batch.

        Notes
        -----
        It drops candidates that lie outside the picture from its crops but not from its boxes, and then trips over
        the difference (IndexError), or over having no crop at all (RuntimeError). That concerns one picture.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        if len(pictures) > 1:
            return [self._batch(picture[None])[0] for picture in pictures]
        log.warning("MTCNN failed on a picture of %s px (%s): taken as without a face", pictures.shape[1:3], error)
        return [np.empty((0, 5))]

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
