"""One clip from its source to features: detection over the whole clip first, then crops and CNN in segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.taps_part import views_of
from fercache.errors import ClipError
from fercache.extraction.batcher import Sheet
from fercache.extraction.persons_part import Whom, people_in
from fercache.extraction.plant_part import Plant
from fercache.faces import interpolation
from fercache.faces.augmentation import look_of, render, seen_in_views
from fercache.faces.crops import crop, whole
from fercache.faces.person_part import Person
from fercache.media.source import Frame, Source
from fercache.runtime.prefetch import ahead
from fercache.store.layout import CLOCK, SEGMENT
from fercache.store.writer import ClipWriter

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


class Block(NamedTuple):
    """Frames up to row `stop` that are being looked at; no promise where an earlier run has kept what is in them."""

    stop: int
    frames: int
    promise: Future[NDArray[np.float64]] | None


class Segment(NamedTuple):
    """Rows from `start` on whose crops the CNN has."""

    start: int
    rows: int
    sheet: Sheet


@dataclass
class ClipJob:
    """What one clip needs. Of each face there are `views`.

    `writer` is of the person whose commit means that the clip is done; what others there are is written before.
    """

    source: Source
    writer: ClipWriter
    plant: Plant
    whom: Whom = field(default_factory=Whom)
    every: int = 1
    margin: float = 0.0
    views: int = 1

    def run(self) -> int:
        """Write everything of the clip but the commit mark of its first person, and return how many people it has.

        Raises
        ------
        ClipError
            The source cannot be read to its end, or holds no frame.
        Stopped
            The run was asked to end; what is written so far is durable.
        """
        with self.plant.mixer.clip():
            if self.plant.detector is None:
                self.embed_crops()
                return 1
            clock, count = self.writer.clock, 1
            if clock is None or self.whom.several:
                first, *others = self.detect()
                self._write_others(others)
                count += len(others)
                if clock is None:
                    self.writer.set_clock(first)
                clock = first
            self.embed_boxes(clock)
            return count

    def detect(self) -> list[NDArray[np.float64]]:
        """Find the faces of every frame, and return the clock of each person that is asked for."""
        times: list[float] = []
        cuts = interpolation.Cuts()
        under_way: deque[Block] = deque()
        with closing(ahead(self._decoded(0), FRAMES_AHEAD)) as frames:
            for held, block in self._blocks(frames):
                times += [frame.time_s for frame in block]
                for frame in block:
                    cuts.see(frame.index - 1, frame.image)
                under_way.append(self._begun(held, block))
                while len(under_way) > self.plant.crew.count:
                    self._keep(under_way.popleft())
        while under_way:
            self._keep(under_way.popleft())
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        found = self.writer.detections()
        border = np.searchsorted(found[:, 0], np.arange(1, len(times)))
        people = people_in(self.source, np.split(found[:, 1:], border), cuts.rows, self.whom.look)
        return [clock_of(np.array(times), one) for one in self.whom.of(people)]

    def _blocks(self, frames: Iterator[Frame]) -> Iterator[tuple[int, list[Frame]]]:
        """Yield the frames in blocks, with the bytes of memory that were taken for each."""
        for first in frames:
            size = DETECT_BLOCK * (0 if first.image is None else first.image.nbytes)
            self.plant.brake.check()
            self.plant.room.take(size)
            try:
                block = [first, *islice(frames, DETECT_BLOCK - 1)]
            except BaseException:
                self.plant.room.give(size)
                raise
            yield size, block

    def _begun(self, held: int, block: list[Frame]) -> Block:
        """Have the crew look at a block, unless an earlier run has, and give its memory back when that is done."""
        stop = block[-1].index
        if stop <= self.writer.detected:
            self.plant.room.give(held)
            return Block(stop, len(block), None)
        images = [frame.image for frame in block]
        rows = [frame.index - 1 for frame in block]
        promise = self.plant.crew.submit(lambda: self._found(rows, images))
        promise.add_done_callback(lambda _: self.plant.room.give(held))
        return Block(stop, len(block), promise)

    def _found(self, rows: list[int], images: list[NDArray[np.uint8] | None]) -> NDArray[np.float64]:
        """Return the faces of a block, (n, 6): row, box, score; in a thread of the crew."""
        with self.plant.gauge.busy("detect", len(rows)):
            faces = interpolation.faces_of(images, self.plant, self.every)
        return np.concatenate([np.empty((0, 6)), *(np.column_stack([np.full(len(found), row), found])
                                                   for row, found in zip(rows, faces, strict=True))])

    def _keep(self, block: Block) -> None:
        """Make what was found in a block durable."""
        if block.promise is not None:
            found = block.promise.result()
            with self.plant.gauge.busy("write", 0):
                self.writer.keep_detections(block.stop, found)
        self.plant.advance(DETECT_SHARE * block.frames)

    def _decoded(self, start: int) -> Iterator[Frame]:
        """Yield the source's frames from row `start` on."""
        return self.plant.gauge.each("decode", self.source.frames(start))

    def _write_others(self, clocks: Sequence[NDArray[np.float64]]) -> None:
        """Bring the people after the first to their commit marks; those that an earlier run committed stay."""
        if clocks and self.plant.bar.total:
            self.plant.bar.grow(self.plant.bar.total + (1 - DETECT_SHARE) * sum(map(len, clocks)))
        for number, clock in enumerate(clocks, 2):
            with self.whom.beside(number) as writer:
                if writer is not None:
                    if writer.clock is None:
                        writer.set_clock(clock)
                    replace(self, writer=writer).embed_boxes(clock)
                    writer.commit()

    def embed_boxes(self, clock: NDArray[np.float64]) -> None:
        """Run the CNN over the boxes of the clock, segment by segment."""
        boxes = clock[:, CLOCK.index("x1"):CLOCK.index("y2") + 1]
        start = self.writer.written
        with closing(ahead(self._cropped(start, boxes), FACES_AHEAD // self.views)) as looks:
            stop = self._embed(start, looks, 1 - DETECT_SHARE)
        if stop != len(clock):
            raise ClipError(f"gave {stop} frames where detection had seen {len(clock)}", where=self.source.path,
                            hint="the file changed while it was read; run again")

    def _cropped(self, start: int, boxes: NDArray[np.float64]) -> Iterator[Looks]:
        """Yield the looks at the face of each frame from row `start` on."""
        for frame in self._decoded(start):
            yield self._looks(frame, boxes[frame.index - 1] if frame.index <= len(boxes) else NO_BOX)

    def _looks(self, frame: Frame, box: NDArray[np.float64]) -> Looks:
        """Return the face in `box`, plain and in every view."""
        if frame.image is None or np.isnan(box[0]):
            return []
        with self.plant.gauge.busy("crop", 1):
            plain = crop(frame.image, box, CROP_PX, self.margin)
            name = self.writer.job.clip
            return [plain, *(render(plain, frame.image, box, self.margin, look_of(name, frame.index, view))
                             for view in range(1, self.views))]

    def embed_crops(self) -> None:
        """Run the CNN over pictures that are faces already; the clock is known when the last one was decoded."""
        times: list[float] = []
        boxes: list[NDArray[np.float64]] = []
        written = self.writer.written
        with closing(ahead(self._whole(times, boxes, written), FACES_AHEAD // self.views)) as looks:
            self._embed(written, looks, 1.0)
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        seen = ~np.isnan(np.array(boxes)[:, 0])
        self.writer.set_clock(clock_of(np.array(times), Person(
            boxes=np.array(boxes), score=np.where(seen, 1.0, np.nan), track=np.where(seen, 0, NO_TRACK))))

    def _whole(self, times: list[float], boxes: list[NDArray[np.float64]], written: int) -> Iterator[Looks]:
        """Yield the looks at each picture from row `written` on; note time and box of all."""
        for frame in self._decoded(0):
            times.append(frame.time_s)
            boxes.append(NO_BOX if frame.image is None else whole(frame.image))
            if frame.index > written:
                yield self._looks(frame, boxes[-1])

    def _embed(self, start: int, looks: Iterator[Looks], share: float) -> int:
        """Embed and write frames from row `start` on, and return the row behind the last.

        Parameters
        ----------
        share : how much of a frame's work this is, for the progress bar.

        Notes
        -----
        A segment is written when the next one has been handed over, so that the cores have work meanwhile.
        """
        before: Segment | None = None
        while True:
            segment = self._handed_over(start, looks)
            if before is not None:
                self._write(before, share)
            if not segment.rows:
                return start
            before, start = segment, start + segment.rows

    def _handed_over(self, start: int, looks: Iterator[Looks]) -> Segment:
        """Give the crops of the next segment to the CNN; rows without a face stay zeros."""
        self.plant.brake.check()
        mixer, rows = self.plant.mixer, 0
        sheet = Sheet(mixer.net.shapes, SEGMENT, self.views)
        for row, look in enumerate(islice(looks, SEGMENT)):
            rows = row + 1
            for view, one in enumerate(look):
                mixer.put(one, sheet, row, view)
        return Segment(start, rows, sheet)

    def _write(self, segment: Segment, share: float) -> None:
        """Write a segment when its last crop is done."""
        self.plant.mixer.wait(segment.sheet)
        values = self._arrays(segment)
        with self.plant.gauge.busy("write", segment.rows):
            self.writer.write(segment.start, values)
        self.plant.advance(share * segment.rows)

    def _arrays(self, segment: Segment) -> dict[str, NDArray[np.float16]]:
        """Return {array: (n, ...) float16}: each tap, and beside it what it is in the views."""
        shapes, out = self.plant.mixer.net.shapes, {}
        for tap in shapes:
            held = segment.sheet.values[tap][:segment.rows]
            out[tap] = held[:, 0]
            if self.views > 1 and tap in seen_in_views(shapes):
                out[views_of(tap)] = held[:, 1:]
        return out


def clock_of(time_s: NDArray[np.float64], person: Person) -> NDArray[np.float64]:
    """Return the clock columns, ``(T, 9)``, of frames 1 to T."""
    return np.column_stack([np.arange(1, len(time_s) + 1), time_s, person.seen, person.boxes, person.score,
                            person.track]).astype(np.float64)
