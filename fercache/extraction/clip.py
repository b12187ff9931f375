"""One clip from its source to features: first detection over the whole clip, then crops and CNN in segments."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.backbones.registry import Card
from fercache.backbones.taps import tap_views
from fercache.config import ExtractConfig
from fercache.data.base import PEOPLE_COUNT, SIDES, Trial, people_of, people_stored, person_name
from fercache.errors import ClipError
from fercache.extraction.batcher import FeatureBuffer
from fercache.extraction.run_control import prefetch
from fercache.faces import interpolation
from fercache.faces.crops import augmented_taps, crops_of, face_pixels, sample_augmentation, whole_picture
from fercache.faces.identity import Person, build_persons, crops_to_embed, left_and_right, mean_vector
from fercache.faces.interpolation import Face, select_frames, small_gray
from fercache.faces.tracklets import link_tracklets
from fercache.media.source import Frame, Source
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import EMBEDDED, FRAME_COLUMNS, SEGMENT, encode_name, frame_columns
from fercache.store.locks import locked_clips
from fercache.store.writer import ClipWriter

if TYPE_CHECKING:
    from fercache.extraction.resources import PipelineResources  # torch: seconds that a cached run saves

log = logging.getLogger(__name__)

# Crops (n, S, S, 3) -> identity vectors (n, D).
EmbedFaces = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
# A frame's face, plain and then in each augmentation, each (S, S, 3); empty without a face.
AugmentedCrops = list[NDArray[np.uint8]]
# (row, bytes of the box) -> the pixels of the face (h, w, 3).
FacePixels = dict[tuple[int, bytes], NDArray[np.uint8]]

# Crops for identity vectors in memory at once.
IDENTITY_BATCH = 256
# With people = "all", a person needs this many frames (half a second): shorter ones are mostly false detections.
MIN_FRAMES = 12
NO_TRACK = -1
NO_BOX = np.full(4, np.nan)
# Faces of a frame up to which their pixels are kept: of more, most belong to people who are not embedded.
MOST_KEPT = 3
# Columns of the frame table.
BOX = slice(FRAME_COLUMNS.index("x1"), FRAME_COLUMNS.index("y2") + 1)
TIME_TRACK = [FRAME_COLUMNS.index("time_s"), FRAME_COLUMNS.index("track")]
# Frames per call of the detector. Fixed, as are the batches within: MTCNN's boxes move by up to 1e-4 px with the rest
# of their batch, and a resumed run must end with the same bytes.
DETECT_BLOCK = 64
# Frames, and crops, that are prepared ahead while the detector or the CNN is busy.
FRAMES_AHEAD, FACES_AHEAD = 16, 256
# Detection's part of the work on a frame, for the progress bar only.
DETECT_FRACTION = 0.75


@dataclass(frozen=True, kw_only=True)
class ClipPeople:
    """The people of one clip: which are written, and their writers. The first one's manifest is written last."""

    trial: Trial
    store: EmbeddingStore
    # `source`, `provenance`: as `EmbeddingStore.writer` takes them.
    source: dict[str, Any]
    provenance: dict[str, Any]

    def name(self, number: int = 1) -> str:
        """Return the name in the store of the person with that number, from 1."""
        return person_name(self.trial, people_of(self.store.settings), number)

    @property
    def several(self) -> bool:
        """Whether the clip can have several people."""
        return self.name() != self.trial.name

    def select(self, people: Sequence[Person]) -> list[Person]:
        """Return the people to write, at least one. The first one is committed last."""
        wanted = people_of(self.store.settings)
        if self.trial.side:  # the clip's name asks for one of two people
            return [left_and_right(people)[self.trial.side == "right"]]
        if wanted == "left/right":
            return list(left_and_right(people))
        if wanted == "all":
            return [people[0], *(person for person in people[1:] if person.seen.sum() >= MIN_FRAMES)]
        return [people[0]]

    @contextmanager
    def open_first(self) -> Iterator[ClipWriter | None]:
        """Yield the writer of the first person, or None if another process has the clip or has just committed it."""
        # A clip that starts from scratch first removes the other people of an earlier run.
        stored = 0
        if self.several and self.name() in self.store:
            stored = int(self.store.manifest(self.name()).provenance.get(PEOPLE_COUNT, 0))
        if (stored and not people_stored(self.trial, self.store)
                and encode_name(self.name()) not in locked_clips(self.store.path)):
            self.store.remove(self.name())  # one of the other people is missing: extract all again
        with self.store.writer(self.name(), source=self.source, provenance=self.provenance) as writer:
            if self.several and writer is not None and not writer.detected:
                self._remove_others(stored)
            yield writer

    def open_other(self, number: int) -> AbstractContextManager[ClipWriter | None]:
        """Return a context with the writer of another person, or with None if that person is committed."""
        return self.store.writer(self.name(number), source=self.source, provenance=self.provenance)

    def _remove_others(self, stored: int) -> None:
        """Remove every other person of an earlier run, in which the first one's manifest stated `stored` people."""
        people = people_of(self.store.settings)
        last = len(SIDES) if people == "left/right" else max(stored, 1)
        # A killed run may have committed more people than any manifest states.
        while people == "all" and self.name(last + 1) in self.store:
            last += 1
        # Highest number first: after a kill the numbers are still without a gap, and the loop above finds the rest.
        for number in range(last, 1, -1):
            if self.name(number) in self.store:
                self.store.remove(self.name(number))


def people_in(source: Source, detections: Sequence[NDArray[np.float64]], cuts: Sequence[int],
              embed_faces: EmbedFaces | None, card: Card, pixels: FacePixels) -> list[Person]:
    """Return the people of a clip, the main person first; a clip without faces has one person in no frame.

    Raises ClipError if the source cannot be read again.

    Parameters
    ----------
    detections : faces of each frame, (n, 5): x1, y1, x2, y2 in pixels and the score; or (n, 15) with landmarks.
    cuts : first row of each new shot.
    embed_faces : returns identity vectors; None for a net without them: then position alone decides.
    card : how that net's crops are cut.
    pixels : faces that need not be read again.
    """
    # A clip with one face at a time and no interruption is not read again. Any other clip is, up to the last frame with
    # a face that is embedded and not in `pixels`. The result depends on the detections only, so a clip resumed after a
    # kill ends with the same people.
    tracklets = link_tracklets(detections, cuts)
    if embed_faces is None:
        return build_persons(tracklets)
    faces, by_row = tracklets.faces, dict[int, list[int]]()
    known: list[tuple[int, NDArray[np.uint8]]] = []
    for face in crops_to_embed(tracklets).tolist():
        row = int(tracklets.frame[face])
        found = pixels.get((row, faces[face, :4].tobytes()))
        known.append((face, found)) if found is not None else by_row.setdefault(row, []).append(face)
    crops = chain(((face, crops_of(card, found, whole_picture(found))[0]) for face, found in known),
                  ((face, crops_of(card, frame.image, faces[face, :4], faces[face, 5:])[0])
                   for frame in source.pick(list(by_row)) if frame.image is not None
                   for face in by_row[frame.index - 1]))
    batches: list[NDArray[np.float32]] = []
    rows: list[int] = []
    while batch := list(islice(crops, IDENTITY_BATCH)):
        rows += [int(tracklets.tracklet[face]) for face, _ in batch]
        batches.append(embed_faces(np.stack([crop for _, crop in batch])))
    if not rows:
        return build_persons(tracklets, {})
    log.debug("%s: %d faces of %d tracklets embedded for identity", source.path, len(rows), tracklets.count)
    vectors, tracklet = np.concatenate(batches), np.array(rows)
    return build_persons(tracklets, {int(i): mean_vector(vectors[tracklet == i]) for i in np.unique(tracklet)})


class Block(NamedTuple):
    """Frames up to row `stop` under detection; `future` is None if an earlier run has stored their detections."""

    stop: int
    frames: int
    future: Future[tuple[NDArray[np.float64], FacePixels]] | None


class Segment(NamedTuple):
    """Rows from `start` on whose crops were submitted to the CNN."""

    start: int
    rows: int
    buffer: FeatureBuffer


@dataclass
class ClipJob:
    """One clip from its frames to its features."""

    source: Source
    writer: ClipWriter  # of the person whose commit completes the clip; all others are written before
    resources: PipelineResources
    people: ClipPeople
    config: ExtractConfig
    card: Card  # how crops are cut
    # The faces that detection cut out, as far as memory allows, so that most frames are decoded once.
    pixels: FacePixels = field(default_factory=dict)

    def run(self) -> int:
        """Write everything but the manifest of the first person, and return the number of people.

        Raises ClipError if the source cannot be read to its end, or holds no frame; Cancelled if the run was cancelled;
        everything written so far is durable.
        """
        try:
            with self.resources.batcher.clip():
                if self.resources.detector is None:
                    self.embed_crops()
                    return 1
                frame_table, people = self.writer.frame_table, 1
                # A resumed clip has the frame table of its first person only.
                if frame_table is None or self.people.several:
                    first, *others = self.detect()
                    self._write_others(others)
                    people += len(others)
                    frame_table = first
                self.embed_boxes(frame_table)
                return people
        finally:
            self.resources.faces.release(sum(pixels.nbytes for pixels in self.pixels.values()))
            self.pixels.clear()

    def detect(self) -> list[NDArray[np.float64]]:
        """Detect the faces of every frame, and return the frame table of each selected person."""
        times: list[float] = []
        cuts = interpolation.ShotBoundaryDetector()
        under_way: deque[Block] = deque()
        with closing(prefetch(self._decoded(0), FRAMES_AHEAD)) as frames:
            for size, block in self._blocks(frames):
                times += [frame.time_s for frame in block]
                for frame in block:
                    cuts.see(frame.index - 1, frame.image)
                under_way.append(self._start_detection(size, block))
                # Stored in the order of the frames: a resumed run continues after the last stored row.
                while len(under_way) > self.resources.torch_threads.count:
                    self._store_detections(under_way.popleft())
        while under_way:
            self._store_detections(under_way.popleft())
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        # From the writer, which also has what an earlier run detected.
        detections = self.writer.detections()
        borders = np.searchsorted(detections[:, 0], np.arange(1, len(times)))
        people = people_in(self.source, np.split(detections[:, 1:], borders), cuts.rows, self.resources.embed_faces,
                           self.card, {} if self.config.margin else self.pixels)
        return [frame_table_of(np.array(times), person) for person in self.people.select(people)]

    def _blocks(self, frames: Iterator[Frame]) -> Iterator[tuple[int, list[Frame]]]:
        """Yield the frames in blocks, each with the bytes that it takes from the memory budget."""
        for first in frames:
            size = DETECT_BLOCK * (0 if first.image is None else first.image.nbytes)
            self.resources.cancel.check()
            self.resources.budget.acquire(size)  # before the rest of the block is decoded
            try:
                block = [first, *islice(frames, DETECT_BLOCK - 1)]
            except BaseException:
                self.resources.budget.release(size)
                raise
            yield size, block

    def _start_detection(self, size: int, block: list[Frame]) -> Block:
        """Start detection on a block unless an earlier run did it; its memory is released when it is done."""
        stop = block[-1].index
        if stop <= self.writer.detected:
            self.resources.budget.release(size)
            return Block(stop, len(block), None)
        images = [frame.image for frame in block]
        rows = [frame.index - 1 for frame in block]
        future = self.resources.torch_threads.submit(lambda: self._detect_block(rows, images))
        # As a callback, so that the bytes are released after an error, too.
        future.add_done_callback(lambda _: self.resources.budget.release(size))
        return Block(stop, len(block), future)

    def _detect_block(self, rows: list[int], images: list[NDArray[np.uint8] | None]
                      ) -> tuple[NDArray[np.float64], FacePixels]:
        """Return the faces of a block, (n, 6 or 16): row, box, score, landmarks; and pixels. Runs in a pool thread."""
        columns, pixels = self.resources.columns, FacePixels()
        with self.resources.profiler.busy("detect", len(rows)):
            faces = interpolation.interpolate_faces(images, self.resources.detect, self.config.detect_every, columns)
        for row, image, boxes in zip(rows, images, faces, strict=True):
            # Augmentations need the pixels around the face too.
            if image is not None and len(boxes) <= MOST_KEPT and self.config.augmentations == 1:
                for box in boxes[:, :4]:
                    if (found := face_pixels(self.card, image, box, self.config.margin)) is not None:
                        pixels[row, box.tobytes()] = found.copy()
        return np.concatenate([np.empty((0, 1 + columns)), *(np.column_stack([np.full(len(boxes), row), boxes])
                                                   for row, boxes in zip(rows, faces, strict=True))]), pixels

    def _store_detections(self, block: Block) -> None:
        """Make the detections of a block durable."""
        if block.future is not None:
            detections, pixels = block.future.result()
            self.pixels |= {key: found for key, found in pixels.items()
                            if self.resources.faces.try_acquire(found.nbytes)}
            with self.resources.profiler.busy("write", 0):
                self.writer.keep_detections(block.stop, detections)
        self.resources.advance(DETECT_FRACTION * block.frames)

    def _decoded(self, start: int) -> Iterator[Frame]:
        """Yield the source's frames from row `start` on."""
        return self.resources.profiler.each("decode", self.source.frames(start))

    def _write_others(self, frame_tables: Sequence[NDArray[np.float64]]) -> None:
        """Write and commit the people after the first; those that an earlier run committed stay."""
        if frame_tables and self.resources.bar.total:
            self.resources.bar.grow(self.resources.bar.total + (1 - DETECT_FRACTION) * sum(map(len, frame_tables)))
        for number, frame_table in enumerate(frame_tables, 2):
            with self.people.open_other(number) as writer:
                if writer is not None:
                    replace(self, writer=writer).embed_boxes(frame_table)
                    writer.commit()

    def embed_boxes(self, frame_table: NDArray[np.float64]) -> None:
        """Run the CNN over the boxes of a frame table, segment by segment, and store the table too."""
        stored = frame_columns(frame_table.shape[1])
        table = frame_table[:, :len(stored) - stored.count(EMBEDDED)]
        if self.config.embed_every == "auto":  # the pixels decide, so the table is complete after the last frame
            faces = (self._face(frame, table[frame.index - 1]) for frame in self._frames_of(table, range(len(table))))
            self.writer.set_frame_table(with_embedded(table, self._embed_selected(faces)))
            return
        every = self.config.embed_every == "1"
        rows = range(len(table)) if every else [face.row for face in select_frames(
            (Face(row, time_s, int(track), [], None) for row, (time_s, track) in enumerate(table[:, TIME_TRACK])),
            self.config.embed_every)]
        if self.writer.frame_table is None:
            self.writer.set_frame_table(table if every else with_embedded(table, rows))
        frames = self._frames_of(table, rows[self.writer.written:])
        self._embed((self._augmented(frame, table[frame.index - 1]) for frame in frames), rows)

    def _frames_of(self, table: NDArray[np.float64], rows: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of these rows of a frame table; only those are decoded whose face is not cut out yet."""
        seen = ~np.isnan(table[:, BOX.start])
        wanted = {row for row in rows if seen[row] and (row, table[row, BOX].tobytes()) not in self.pixels}
        decoded = self.resources.profiler.each("decode", self.source.pick(sorted(wanted)))
        for row in rows:
            frame = next(decoded, None) if row in wanted else Frame(row + 1, float(table[row, TIME_TRACK[0]]), None)
            if frame is None:
                raise ClipError(f"ends before frame {row + 1}, and had {len(table)} frames during detection",
                                where=self.source.path, hint="the file changed while it was read; run again")
            yield frame

    def _face(self, frame: Frame, row: NDArray[np.float64]) -> Face:
        """Return the face of a row of the frame table."""
        crops = self._augmented(frame, row)
        small = None
        if crops and self.config.embed_every != "1":  # of crops at several scales, (K, S, S, 3), the first
            small = small_gray(crops[0].reshape(-1, *crops[0].shape[-3:])[0])
        return Face(frame.index - 1, frame.time_s, int(row[TIME_TRACK[1]]) if crops else NO_TRACK, crops, small)

    def _embed_selected(self, faces: Iterable[Face]) -> list[int]:
        """Embed the frames that are selected of all frames of the clip, and return their rows."""
        # From the first frame on also in a resumed run: which frames are selected depends on all those before.
        written, rows = self.writer.written, []

        def selected() -> Iterator[AugmentedCrops]:
            for face in faces if self.config.embed_every == "1" else select_frames(faces, self.config.embed_every):
                rows.append(face.row)
                if len(rows) > written:
                    yield face.crops

        self._embed(selected(), rows)
        return rows

    def _augmented(self, frame: Frame, row: NDArray[np.float64]) -> AugmentedCrops:
        """Return the face of a row of the frame table, plain and in every augmentation."""
        pixels = self.pixels.get((frame.index - 1, row[BOX].tobytes()))
        if pixels is not None:
            with self.resources.profiler.busy("crop", 1):
                return crops_of(self.card, pixels, whole_picture(pixels), margin=self.config.margin)
        if frame.image is None or np.isnan(row[BOX.start]):
            return []
        with self.resources.profiler.busy("crop", 1):
            augmentations = [sample_augmentation(self.writer.job.clip, frame.index, view)
                             for view in range(1, self.config.augmentations)]
            return crops_of(self.card, frame.image, row[BOX], row[len(FRAME_COLUMNS):], margin=self.config.margin,
                            augmentations=augmentations)

    def embed_crops(self) -> None:
        """Run the CNN over pictures that are face crops; the frame table is complete after the last one."""
        times: list[float] = []
        boxes: list[NDArray[np.float64]] = []
        rows = self._embed_selected(self._whole(times, boxes))
        if not times:
            raise ClipError("holds no frame", where=self.source.path)
        seen = ~np.isnan(np.array(boxes)[:, 0])
        table = frame_table_of(np.array(times), Person(
            boxes=np.array(boxes), score=np.where(seen, 1.0, np.nan), track=np.where(seen, 0, NO_TRACK)))
        self.writer.set_frame_table(table if self.config.embed_every == "1" else with_embedded(table, rows))

    def _whole(self, times: list[float], boxes: list[NDArray[np.float64]]) -> Iterator[Face]:
        """Yield the face of each picture, and collect time and box of all pictures."""
        for frame in self._decoded(0):
            times.append(frame.time_s)
            boxes.append(NO_BOX if frame.image is None else whole_picture(frame.image))
            row = np.zeros(len(FRAME_COLUMNS))
            row[BOX] = boxes[-1]
            yield self._face(frame, row)

    def _embed(self, crops: Iterator[AugmentedCrops], rows: Sequence[int]) -> None:
        """Embed crops and write them behind the rows that are written; `rows`: the frame of each row of the arrays."""
        before: Segment | None = None  # the one segment that is submitted and not written yet
        start = self.writer.written
        part = 1 - DETECT_FRACTION if self.resources.detector else 1
        # Each frame counts as several crops in memory: the plain one and its augmentations.
        with closing(prefetch(crops, FACES_AHEAD // self.config.augmentations)) as augmented:
            # A segment is written after the next one was submitted, so that the cores stay busy meanwhile.
            while before is None or before.rows:
                segment = self._submit(start, augmented)
                if before is not None:
                    self._write(before)
                    done = rows[before.start + before.rows - 1] - (rows[before.start - 1] if before.start else -1)
                    self.resources.advance(part * done)
                before, start = segment, start + segment.rows

    def _submit(self, start: int, augmented: Iterator[AugmentedCrops]) -> Segment:
        """Give the crops of the next segment to the CNN; rows without a face stay zeros."""
        self.resources.cancel.check()
        batcher, rows = self.resources.batcher, 0
        buffer = FeatureBuffer(batcher.net.shapes, SEGMENT, self.config.augmentations)
        for row, crops in enumerate(islice(augmented, SEGMENT)):
            rows = row + 1
            for view, crop in enumerate(crops):
                batcher.put(crop, buffer, row, view)
        return Segment(start, rows, buffer)

    def _write(self, segment: Segment) -> None:
        """Wait for a segment's last crop and write the segment: each tap, and beside it that of the augmentations."""
        batcher = self.resources.batcher
        batcher.wait(segment.buffer)
        values: dict[str, NDArray[np.float16]] = {}
        for tap in batcher.net.shapes:
            rows = segment.buffer.values[tap][:segment.rows]
            values[tap] = rows[:, 0]
            if self.config.augmentations > 1 and tap in augmented_taps(batcher.net.shapes):
                values[tap_views(tap)] = rows[:, 1:]
        with self.resources.profiler.busy("write", segment.rows):
            self.writer.write(segment.start, values)


def with_embedded(table: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    """Return a frame table, ``(T, 9)``, with a tenth column that is 1 in the embedded rows."""
    return np.column_stack([table, np.isin(np.arange(len(table)), rows)])


def frame_table_of(time_s: NDArray[np.float64], person: Person) -> NDArray[np.float64]:
    """Return the frame table, ``(T, 9)`` float64, or ``(T, 19)`` with landmarks, of frames 1 to T."""
    columns = [np.arange(1, len(time_s) + 1), time_s, person.seen, person.boxes, person.score, person.track]
    return np.column_stack([*columns, person.points] if person.points.size else columns).astype(np.float64)
