"""Who is who in a clip: faces linked by place, then a look at those that place alone does not tell apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fercache.faces.crops import crop
from fercache.faces.identity import looks, mean_vector
from fercache.faces.person_part import Person, persons, sides
from fercache.faces.tracklets import Pieces, pieces_of
from fercache.media.source import Source
from fercache.store.writer import ClipWriter

log = logging.getLogger(__name__)


Look = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Crops (n, 160, 160, 3) -> identity vectors (n, D)."""

CROP_PX = 160
LOOKS_AT_ONCE = 256
"""Crops in memory at once."""
FEWEST = 12
"""Frames from which a face is a person where all are asked for: half a second. What is shorter is mostly no face."""


def _nobody(number: int) -> AbstractContextManager[ClipWriter | None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Whom:
    """Which people of a clip are written.

    Attributes
    ----------
    people : main, all or left/right.
    side : left or right where the clip is of one of two by its name; that beats `people`.
    look : the net that tells people apart; None where there is none.
    beside : gives the writer of the person of a number from 2, None where that one is committed.
    """

    people: str = "main"
    side: str = ""
    look: Look | None = None
    beside: Callable[[int], AbstractContextManager[ClipWriter | None]] = _nobody

    @property
    def several(self) -> bool:
        """Whether a clip may give several people."""
        return not self.side and self.people != "main"

    def of(self, people: Sequence[Person]) -> list[Person]:
        """Return who is written, at least one: the one whose clip is committed last comes first."""
        if self.side:
            return [sides(people)[self.side == "right"]]
        if self.people == "left/right":
            return list(sides(people))
        if self.people == "all":
            return [people[0], *(one for one in people[1:] if one.seen.sum() >= FEWEST)]
        return [people[0]]


def people_in(source: Source, detections: Sequence[NDArray[np.float64]], cuts: Sequence[int],
              look: Look | None) -> list[Person]:
    """Return the people of a clip, the main person first; nobody is one person of no frame.

    Parameters
    ----------
    detections : faces of each frame, (n, 5): x1, y1, x2, y2 in pixels and the score.
    cuts : rows that another scene begins with.
    look : the net that tells people apart; None where there is none, so that places alone decide.

    Raises
    ------
    ClipError
        The source cannot be read again.

    Notes
    -----
    A clip with one face at a time and no break is not read again. Another one is, up to the last frame that is looked
    at. The result follows from the detections alone: a clip that goes on after a kill ends with the same people.
    """
    pieces = pieces_of(detections, cuts)
    if look is None:
        return persons(pieces)
    return persons(pieces, _vectors(source, pieces, look))


def _vectors(source: Source, pieces: Pieces, look: Look) -> dict[int, NDArray[np.float64]]:
    """Return the identity vector of each piece that is looked at."""
    said: list[NDArray[np.float32]] = []
    seen: list[int] = []
    crops = _crops(source, pieces, looks(pieces))
    while block := list(islice(crops, LOOKS_AT_ONCE)):
        seen += [int(pieces.piece[face]) for face, _ in block]
        said.append(look(np.stack([one for _, one in block])))
    if not seen:
        return {}
    log.debug("%s: %d faces of %d pieces looked at", source.path, len(seen), pieces.count)
    vectors, piece = np.concatenate(said), np.array(seen)
    return {int(one): mean_vector(vectors[piece == one]) for one in np.unique(piece)}


def _crops(source: Source, pieces: Pieces, faces: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each of these faces of `pieces` and its crop (160, 160, 3); none is read where there are none."""
    by_row: dict[int, list[int]] = {}
    for face in faces.tolist():
        by_row.setdefault(int(pieces.frame[face]), []).append(face)
    for frame in source.pick(list(by_row)) if by_row else ():
        if frame.image is not None:
            for face in by_row[frame.index - 1]:
                yield face, crop(frame.image, pieces.faces[face], CROP_PX)
