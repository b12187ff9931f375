"""One clip from its source to features: detection over the whole clip first, then crops and CNN in segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fercache import follow
from fercache.backbones import Backbone
from fercache.crops import crop, whole
from fercache.errors import ClipError
from fercache.extract.brake import Brake
from fercache.extract.persons import Whom, people_in
from fercache.faces import Detector
from fercache.media import Frame, Source
from fercache.people import Person
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
    """What one clip needs; `detector` is None where the pictures are faces already. Of each face there are `views`.

    `writer` is of the person whose commit means that the clip is done; what others there are is written before.
    """

    source: Source
    writer: ClipWriter
    backbone: Backbone
    detector: Detector | None
    bar: Meter
    whom: Whom = field(default_factory=Whom)
    every: int = 1
    margin: float = 0.0
    views: int = 1
    brake: Brake = field(default_factory=Brake)

    def run(self) -> int:
        """Write everything of the clip but the commit mark of its first person, and return how many people it has.

        Raises
        ------
        ClipError
            The source cannot be read to its end, or holds no frame.
        Stopped
            The run was asked to end; what is written so far is durable.
        """
        if self.detector is None:
            self.embed_crops()
            return 1
        clock, count = self.writer.clock, 1
        if clock is None or self.whom.several:
            first, *others = self.detect(self.detector)
            self._write_others(others)
            count += len(others)
            if clock is None:
                self.writer.set_clock(first)
            clock = first
        self.embed_boxes(clock)
        return count

    def detect(self, detector: Detector) -> list[NDArray[np.float64]]:
        """Find the faces of every frame, and return the clock of each person that is asked for."""
        times: list[float] = []
        cuts = follow.Cuts()
        for batch in blocks(ahead(self.source.frames(), FRAMES_AHEAD), DETECT_BLOCK):
            self.brake.check()
            times += [frame.time_s for frame in batch]
            for frame in batch:
                cuts.see(frame.index - 1, frame.image)
            if len(times) > self.writer.detected:
                self._detect(detector, batch, stop=len(times))
            self.bar.advance(DETECT_SHARE * len(batch))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        found = self.writer.detections()
        border = np.searchsorted(found[:, 0], np.arange(1, len(times)))
        people = people_in(self.source, np.split(found[:, 1:], border), cuts.rows, self.whom.look)
        return [clock_of(np.array(times), one) for one in self.whom.of(people)]

    def _write_others(self, clocks: Sequence[NDArray[np.float64]]) -> None:
        """Bring the people after the first to their commit marks; those that an earlier run committed stay."""
        if clocks and self.bar.total:
            self.bar.grow(self.bar.total + (1 - DETECT_SHARE) * sum(map(len, clocks)))
        for number, clock in enumerate(clocks, 2):
            with self.whom.beside(number) as writer:
                if writer is not None:
                    if writer.clock is None:
                        writer.set_clock(clock)
                    replace(self, writer=writer).embed_boxes(clock)
                    writer.commit()

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
        self.writer.set_clock(clock_of(np.array(times), Person(
            boxes=np.array(boxes), score=np.where(seen, 1.0, np.nan), track=np.where(seen, 0, NO_TRACK))))

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


def clock_of(time_s: NDArray[np.float64], person: Person) -> NDArray[np.float64]:
    """Return the clock columns, ``(T, 9)``, of frames 1 to T."""
    return np.column_stack([np.arange(1, len(time_s) + 1), time_s, person.seen, person.boxes, person.score,
                            person.track]).astype(np.float64)
