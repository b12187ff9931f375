"""One person of a clip: a box a frame where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fercache.faces.boxes_part import NONE, Bools, Floats, Ints
from fercache.faces.identity import joined
from fercache.faces.place_part import by_place
from fercache.faces.tracklets import Pieces


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person of a clip of T frames.

    Attributes
    ----------
    boxes : (T, 4) x1, y1, x2, y2 in pixels, NaN where the person is not seen.
    score : (T,) of the detector, NaN there.
    track : (T,) number of the piece that the box is of, -1 there.
    """

    boxes: Floats
    score: Floats
    track: Ints

    @property
    def seen(self) -> Bools:
        """Whether there is a box, (T,)."""
        return np.asarray(self.track != NONE)


def persons(pieces: Pieces, vectors: Mapping[int, Floats] | None = None) -> list[Person]:
    """Return the people of a clip, the main person (largest sum of area x score) first; nobody is one of no frame.

    Parameters
    ----------
    vectors : identity vectors (D,) of the pieces that were looked at; None where there is no net that tells people
        apart, so that places alone decide.
    """
    members = by_place(pieces) if vectors is None else joined(pieces, vectors)
    return [person_of(pieces, mine) for mine in members or [np.empty(0, np.int64)]]


def person_of(pieces: Pieces, members: Ints) -> Person:
    """Return the person that these pieces are; nobody where there are none."""
    boxes, score = np.full((pieces.frames, 4), np.nan), np.full(pieces.frames, np.nan)
    track = np.full(pieces.frames, NONE, np.int64)
    mine = np.isin(pieces.piece, members)
    rows = pieces.frame[mine]
    boxes[rows], score[rows], track[rows] = pieces.faces[mine, :4], pieces.faces[mine, 4], pieces.piece[mine]
    return Person(boxes=boxes, score=score, track=track)


def sides(people: Sequence[Person]) -> tuple[Person, Person]:
    """Return who is on the left and who on the right of a video with two; one person alone is on both sides.

    Parameters
    ----------
    people : at least one, the main person first.

    Notes
    -----
    The two are the first two; their mean places over the frames that show both (else over all) decide.
    """
    if len(people) < 2:
        return people[0], people[0]
    first, second = people[:2]
    both = first.seen & second.seen
    place = [(one.boxes[:, 0] + one.boxes[:, 2])[both if both.any() else one.seen].mean() for one in (first, second)]
    return (first, second) if place[0] <= place[1] else (second, first)
