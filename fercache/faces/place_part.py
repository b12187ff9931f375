"""Persons by the places of their faces alone, for nets without an identity vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fercache.faces.boxes_part import Bools, Floats, Ints, apart, area
from fercache.faces.identity import heaviest_first
from fercache.faces.tracklets import Pieces

MIN_RETURN = 5
"""Frames that a track must have to count as a person come back; shorter ones are mostly no faces."""
MIN_RETURN_AREA = 0.2
"""Area, as a share of the main track's, under which a face that appears later is somebody in the background."""


def by_place(pieces: Pieces) -> list[Ints]:
    """Return the pieces of each person, the heaviest person (area x score) first.

    Notes
    -----
    Pieces that overlap makes one are one. Where a person is absent, another track may be the same person again, unless
    it was ever on screen together with a track of theirs, or continues one that was. Without a look at the face
    that is a guess, which errs towards frames without a person. It begins with the heaviest track, and again with the
    heaviest of those that are left.
    """
    name = np.arange(pieces.count)
    for before, after in pieces.own:  # sorted: what goes before has its name already
        name[after] = name[before]
    tracks, track = np.unique(name, return_inverse=True)
    left = np.arange(len(tracks))
    person = np.arange(len(tracks))
    while len(left):
        inside = np.isin(track[pieces.piece], left)
        number = np.searchsorted(left, track[pieces.piece[inside]])
        mine = left[choose(pieces.frame[inside], pieces.faces[inside], number)]
        person[mine] = mine[0]
        left = np.setdiff1d(left, mine)
    return heaviest_first(person[track], pieces.weight())


def choose(frame: Ints, faces: Floats, track: Ints) -> Ints:
    """Return the numbers of the tracks that are the main person.

    Parameters
    ----------
    frame, faces, track : of every face: row (M,), box and score (M, 5), track number (M,).
    """
    known = _summary(frame, faces, track)
    mine = np.zeros(len(known.weight), bool)
    others = np.zeros_like(mine)
    order = np.argsort(-known.weight, kind="stable")
    main = order[0]
    for candidate in order:
        if candidate != main and not known.may_return(candidate, main, mine, others):
            continue
        mine[candidate] = True
        others |= known.together(candidate) & ~mine
    return np.flatnonzero(mine)


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What is known of each of S tracks: frames (S,), first and last box (S, 4), weight, mean area, frames held."""

    start: Ints
    stop: Ints
    first: Floats
    last: Floats
    weight: Floats
    size: Floats
    held: Ints

    def together(self, track: int) -> Bools:
        """Return (S,) whether each track was on screen in the span of `track`."""
        return np.asarray((self.start <= self.stop[track]) & (self.stop >= self.start[track]))

    def may_return(self, track: int, main: int, mine: Bools, others: Bools) -> bool:
        """Return whether `track` can be the main person come back."""
        if others[track] or self.held[track] < MIN_RETURN or self.size[track] < MIN_RETURN_AREA * self.size[main]:
            return False
        if not others.any():
            return True
        away = self._distance(track)
        return bool(away[mine].min() <= away[others].min())

    def _distance(self, track: int) -> Floats:
        """Return (S,) how far, in face sizes, `track` begins from where each track ended, or the other way round."""
        later = self.start > self.stop[track]
        theirs = np.where(later[:, None], self.first, self.last)
        own = np.where(later[:, None], self.last[track], self.first[track])
        return apart(theirs, own)


def _summary(frame: Ints, faces: Floats, track: Ints) -> _Summary:
    """Return what is known of each track; faces come in order of their frames."""
    count = int(track.max()) + 1
    order = np.argsort(track, kind="stable")
    edges = np.searchsorted(track[order], np.arange(count + 1))
    first, last = order[edges[:-1]], order[edges[1:] - 1]
    held = np.diff(edges)
    covered = area(faces)
    return _Summary(start=frame[first], stop=frame[last], first=faces[first, :4], last=faces[last, :4], held=held,
                    weight=np.asarray(np.bincount(track, covered * faces[:, 4], count), np.float64),
                    size=np.bincount(track, covered, count) / held)
