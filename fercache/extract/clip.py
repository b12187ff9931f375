"""One clip from its source to features: detection over the whole clip first, then crops and CNN in segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fercache import follow
from fercache.backbones import Backbone
from fercache.crops import crop, whole
from fercache.errors import ClipError
from fercache.extract.brake import Brake
from fercache.faces import Detector
from fercache.media import Frame, Source
from fercache.people import person_at
from fercache.prefetch import ahead
from fercache.progress import Meter
from fercache.store import CLOCK, SEGMENT, ClipWriter
from fercache.taps import views_of
from fercache.views import look_of, render, seen_in_views

T = TypeVar("T")
Looks = list[NDArray[np.uint8]]
"""A frame's face, plain and then view by view, each (160, 160, 3); empty where there is none."""

CROP_PX = 160
NO_TRACK = -1
NO_BOX = np.full(4, np.nan)
DETECT_BLOCK = 64
"""Frames given to the detector at once. Fixed, as are its batches within them: MTCNN's boxes move (by up to 1e-4 px)
with what else is in a batch."""
FRAMES_AHEAD, FACES_AHEAD = 16, 256
"""Frames, and cut-out faces, that are decoded while the detector or the CNN is at work."""
DETECT_SHARE = 0.75
"""Share of a frame's work that detection is, for the progress bar only."""


@dataclass
class ClipJob:
    """What one clip needs; `detector` is None where the pictures are faces already. Of each face there are `views`."""

    source: Source
    writer: ClipWriter
    backbone: Backbone
    detector: Detector | None
    bar: Meter
    side: str = ""
    every: int = 1
    margin: float = 0.0
    views: int = 1
    brake: Brake = field(default_factory=Brake)

    def run(self) -> None:
        """Write everything of the clip but the commit mark.

        Raises
        ------
        ClipError
            The source cannot be read to its end, or holds no frame.
        Stopped
            The run was asked to end; what is written so far is durable.
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
        for batch in blocks(ahead(self.source.frames(), FRAMES_AHEAD), DETECT_BLOCK):
            self.brake.check()
            times += [frame.time_s for frame in batch]
            if len(times) > self.writer.detected:
                self._detect(detector, batch, stop=len(times))
            self.bar.advance(DETECT_SHARE * len(batch))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        found = self.writer.detections()
        border = np.searchsorted(found[:, 0], np.arange(1, len(times)))
        boxes, score, track = person_at(np.split(found[:, 1:], border), self.side)
        self.writer.set_clock(clock_of(np.array(times), boxes, score, track))

    def _detect(self, detector: Detector, batch: list[Frame], stop: int) -> None:
        """Find the faces of one batch and keep them."""
        faces = follow.faces_of([frame.image for frame in batch], detector.detect, self.every)
        rows = [np.column_stack([np.full(len(f), frame.index - 1), f])
                for frame, f in zip(batch, faces, strict=True)]
        self.writer.keep_detections(stop, np.concatenate([np.empty((0, 6)), *rows]))

    def embed_boxes(self, clock: NDArray[np.float64]) -> None:
        """Run the CNN over the boxes of the clock, segment by segment."""
        start = self.writer.written
        boxes = clock[:, CLOCK.index("x1"):CLOCK.index("y2") + 1]
        looks = ahead(self._cropped(start, boxes), FACES_AHEAD)
        while long := self._write(start, looks):
            start += long
            self.bar.advance((1 - DETECT_SHARE) * long)
        if start != len(clock):
            raise ClipError(f"gave {start} frames where detection had seen {len(clock)}", where=self.source.path,
                            hint="the file changed while it was read; run again")

    def _cropped(self, start: int, boxes: NDArray[np.float64]) -> Iterator[Looks]:
        """Yield the looks at the face of each frame from row `start` on."""
        for frame in self.source.frames(start):
            yield self._looks(frame, boxes[frame.index - 1] if frame.index <= len(boxes) else NO_BOX)

    def _looks(self, frame: Frame, box: NDArray[np.float64]) -> Looks:
        """Return the face in `box`, plain and in every view."""
        if frame.image is None or np.isnan(box[0]):
            return []
        plain = crop(frame.image, box, CROP_PX, self.margin)
        name = self.writer.job.clip
        return [plain, *(render(plain, frame.image, box, self.margin, look_of(name, frame.index, view))
                         for view in range(1, self.views))]

    def embed_crops(self) -> None:
        """Run the CNN over pictures that are faces already; the clock is known when the last one was decoded."""
        times: list[float] = []
        boxes: list[NDArray[np.float64]] = []
        for segment in blocks(ahead(self.source.frames(), FRAMES_AHEAD), SEGMENT):
            start = len(times)
            times += [frame.time_s for frame in segment]
            boxes += [NO_BOX if frame.image is None else whole(frame.image) for frame in segment]
            if len(times) > self.writer.written:
                self._write(start, (self._looks(f, box) for f, box in zip(segment, boxes[start:], strict=True)))
            self.bar.advance(len(segment))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        seen = ~np.isnan(np.array(boxes)[:, 0])
        self.writer.set_clock(clock_of(np.array(times), np.array(boxes), np.where(seen, 1.0, np.nan),
                                       np.where(seen, 0, NO_TRACK)))

    def _write(self, start: int, looks: Iterator[Looks]) -> int:
        """Embed and write one segment of frames, and return its length; rows without a face are zeros.

        Notes
        -----
        No more crops are held at once than a segment of plain ones, however many views there are.
        """
        self.brake.check()
        parts = [self._embedded(block) for block in blocks(islice(looks, SEGMENT), max(1, SEGMENT // self.views))]
        if not parts:
            return 0
        values = {tap: np.concatenate([part[tap] for part in parts]) for tap in parts[0]}
        self.writer.write(start, values)
        return sum(len(part[next(iter(values))]) for part in parts)

    def _embedded(self, looks: list[Looks]) -> dict[str, NDArray[np.float16]]:
        """Return {array: (n, ...) float16} of n frames: each tap, and beside it what it is in the views."""
        rows = [i for i, look in enumerate(looks) if look]
        found = self.backbone.embed(np.stack([one for look in looks for one in look])) if rows else {}
        out = {}
        for tap, shape in self.backbone.shapes.items():
            held = np.zeros((len(looks), self.views, *shape), np.float16)
            if rows:
                held[rows] = found[tap].reshape(len(rows), self.views, *shape)
            out[tap] = held[:, 0]
            if self.views > 1 and tap in seen_in_views(self.backbone.shapes):
                out[views_of(tap)] = held[:, 1:]
        return out


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
