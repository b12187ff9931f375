"""One clip from its source to features: detection over the whole clip first, then crops and CNN in segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fercache.backbones import Backbone
from fercache.crops import crop, whole
from fercache.errors import ClipError
from fercache.faces import Detector
from fercache.media import Frame, Source
from fercache.people import main_person
from fercache.progress import Meter
from fercache.store import CLOCK, SEGMENT, ClipWriter

T = TypeVar("T")

CROP_PX = 160
NO_TRACK = -1
NO_BOX = np.full(4, np.nan)
DETECT_BLOCK = 64
"""Frames given to the detector at once. Fixed, as are its batches within them: MTCNN's boxes move (by up to 1e-4 px)
with what else is in a batch."""
DETECT_SHARE = 0.75
"""Share of a frame's work that detection is, for the progress bar only."""


@dataclass
class ClipJob:
    """What one clip needs; `detector` is None where the pictures are faces already."""

    source: Source
    writer: ClipWriter
    backbone: Backbone
    detector: Detector | None
    margin: float
    bar: Meter

    def run(self) -> None:
        """Write everything of the clip but the commit mark.

        Raises
        ------
        ClipError
            The source cannot be read to its end, or holds no frame.
        """
        if self.detector is not None and self.writer.clock is None:
            self.detect(self.detector)
        if self.detector is None:
            self.embed_crops()
        elif self.writer.clock is not None:
            self.embed_boxes(self.writer.clock)

    def detect(self, detector: Detector) -> None:
        """Find the faces of every frame, choose whom to follow, and store the clock."""
        times: list[float] = []
        for batch in blocks(self.source.frames(), DETECT_BLOCK):
            times += [frame.time_s for frame in batch]
            if len(times) > self.writer.detected:
                self._detect(detector, batch, stop=len(times))
            self.bar.advance(DETECT_SHARE * len(batch))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        found = self.writer.detections()
        border = np.searchsorted(found[:, 0], np.arange(1, len(times)))
        boxes, score, track = main_person(np.split(found[:, 1:], border))
        self.writer.set_clock(clock_of(np.array(times), boxes, score, track))

    def _detect(self, detector: Detector, batch: list[Frame], stop: int) -> None:
        """Find the faces of one batch and keep them."""
        seen = [(frame.index - 1, frame.image) for frame in batch if frame.image is not None]
        faces = detector.detect([image for _, image in seen])
        rows = [np.column_stack([np.full(len(f), row), f]) for (row, _), f in zip(seen, faces, strict=True)]
        self.writer.keep_detections(stop, np.concatenate([np.empty((0, 6)), *rows]))

    def embed_boxes(self, clock: NDArray[np.float64]) -> None:
        """Run the CNN over the boxes of the clock, segment by segment."""
        start = self.writer.written
        boxes = clock[:, CLOCK.index("x1"):CLOCK.index("y2") + 1]
        for segment in blocks(self._cropped(start, boxes), SEGMENT):
            self._write(start, segment)
            start += len(segment)
            self.bar.advance((1 - DETECT_SHARE) * len(segment))
        if start != len(clock):
            raise ClipError(f"gave {start} frames where detection had seen {len(clock)}", where=self.source.path,
                            hint="the file changed while it was read; run again")

    def _cropped(self, start: int, boxes: NDArray[np.float64]) -> Iterator[NDArray[np.uint8] | None]:
        """Yield the face of each frame from row `start` on, None where there is none."""
        for frame in self.source.frames(start):
            box = boxes[frame.index - 1] if frame.index <= len(boxes) else NO_BOX
            seen = not np.isnan(box[0])
            yield crop(frame.image, box, CROP_PX, self.margin) if frame.image is not None and seen else None

    def embed_crops(self) -> None:
        """Run the CNN over pictures that are faces already; the clock is known when the last one was decoded."""
        times: list[float] = []
        boxes: list[NDArray[np.float64]] = []
        for segment in blocks(self.source.frames(), SEGMENT):
            start = len(times)
            times += [frame.time_s for frame in segment]
            boxes += [NO_BOX if frame.image is None else whole(frame.image) for frame in segment]
            if len(times) > self.writer.written:
                self._write(start, [_whole_crop(frame.image) for frame in segment])
            self.bar.advance(len(segment))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        seen = ~np.isnan(np.array(boxes)[:, 0])
        self.writer.set_clock(clock_of(np.array(times), np.array(boxes), np.where(seen, 1.0, np.nan),
                                       np.where(seen, 0, NO_TRACK)))

    def _write(self, start: int, faces: list[NDArray[np.uint8] | None]) -> None:
        """Embed one segment and write it; rows without a face are zeros."""
        rows = [i for i, face in enumerate(faces) if face is not None]
        pictures = [face for face in faces if face is not None]
        values = self.backbone.embed(np.stack(pictures)) if pictures else {}
        out = {}
        for tap, shape in self.backbone.shapes.items():
            out[tap] = np.zeros((len(faces), *shape), np.float16)
            if rows:
                out[tap][rows] = values[tap]
        self.writer.write(start, out)


def _whole_crop(image: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    return None if image is None else crop(image, whole(image), CROP_PX)


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


def clock_of(time_s: NDArray[np.float64], boxes: NDArray[np.float64], score: NDArray[np.float64],
             track: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the clock columns, ``(T, 9)``, of frames 1 to T."""
    valid = ~np.isnan(boxes[:, 0])
    return np.column_stack([np.arange(1, len(time_s) + 1), time_s, valid, boxes, score, track]).astype(np.float64)
