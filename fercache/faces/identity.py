"""Persons by their faces: which crops to look at, and which pieces the identity vectors join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fercache.faces.tracklets import NONE, Bools, Floats, Ints, Tracklets, apart, area

MAX_CROPS = 5
"""Crops that a piece is known by."""
MIN_CROPS = 3
"""Frames from which a piece is looked at; a shorter one only where it may go on with another by its place."""
JOIN = 0.7
"""Cosine of two pieces' vectors from which they are one person, wherever they are: measured, as is JOIN_NEAR, by
tests/bench/bench_people.py; of 8,644 pairs of two people none was above, of pairs of one 10 % below."""
JOIN_NEAR = 0.4
"""The same for pieces that may go on with each other by place, where the others on the spot are compared as well."""
SMALL_PX = 40
"""Faces under this mean side are too blurred to be known again by the vector alone."""
MAX_TRACKLETS = 3000
"""Pieces whose faces are compared, the heaviest first."""


def crops_to_embed(pieces: Tracklets) -> Ints:
    """Return which faces to look at, (K,) places in `pieces.faces`, in the order of their frames; none where that can
    tell nothing.

    Notes
    -----
    Up to MOST_LOOKS a piece: of each part of it in turn the face with the largest area x score.
    """
    held, beside = pieces.sizes(), np.zeros(pieces.count, bool)
    beside[pieces.competitors.ravel()] = True
    wanted = np.flatnonzero((held >= MIN_CROPS) | beside)
    if len(wanted) < 2:
        return np.empty(0, np.int64)
    wanted = wanted[np.argsort(-pieces.weight()[wanted], kind="stable")[:MAX_TRACKLETS]]
    order = np.argsort(pieces.tracklet, kind="stable")
    edges = np.searchsorted(pieces.tracklet[order], np.arange(pieces.count + 1))
    best = area(pieces.faces) * pieces.faces[:, 4]
    chosen = [part[best[part].argmax()] for number in wanted
              for part in np.array_split(order[edges[number]:edges[number + 1]], min(MAX_CROPS, held[number]))]
    return np.sort(np.array(chosen, np.int64))


def mean_vector(vectors: Floats) -> Floats:
    """Return the mean (D,) of identity vectors (n, D), of length 1."""
    mean = vectors.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def cluster_tracklets(pieces: Tracklets, vectors: Mapping[int, Floats]) -> list[Ints]:
    """Return the pieces of each person, the heaviest person (area x score) first.

    Parameters
    ----------
    vectors : of the pieces that were looked at, (D,) of length 1 each.

    Notes
    -----
    The two that are most surely one are joined first (by how far their cosine is over what is asked of them), never two
    that are in one frame, and so on with their mean. A piece without a vector goes with the one before it by overlap.
    """
    group = _Groups.of(pieces, vectors)
    while (pair := group.best()) is not None:
        group.join(*pair)
    name = group.name
    for before, after in pieces.links:
        if after not in vectors or before not in vectors:
            a, b = name[before], name[after]
            if a != b and not group.together[np.ix_(name == a, name == b)].any():
                name[name == b] = a
    return heaviest_first(name, pieces.weight())


def heaviest_first(name: Ints, weight: Floats) -> list[Ints]:
    """Return the members of each name, (n,) each; the names of the largest sum of weights first, else the earliest."""
    total = np.bincount(name, weight, minlength=len(name))
    return [np.flatnonzero(name == one) for one in np.argsort(-total, kind="stable") if (name == one).any()]


@dataclass
class _Groups:
    """Pieces being joined.

    Attributes
    ----------
    name : (S,) the piece that stands for each piece's person.
    together : (S, S) of single pieces: in one frame.
    at : (V,) the pieces with a vector; the rest is about these, and of a joined person in the row of one of them.
    vector, count : (V, D) and (V,) mean vector and how many pieces it is of.
    asked, apart : (V, V) cosine asked for, and whether the two were ever in one frame.
    """

    name: Ints
    together: Bools
    at: Ints
    vector: Floats
    count: Floats
    asked: Floats
    apart: Bools
    over: Floats

    @classmethod
    def of(cls, pieces: Tracklets, vectors: Mapping[int, Floats]) -> _Groups:
        """Return every piece by itself."""
        at, together = np.array(sorted(vectors), np.int64), pieces.together()
        asked = np.full((pieces.count, pieces.count), JOIN)
        small = pieces.size() < SMALL_PX
        asked[small] = asked[:, small] = np.inf
        asked[pieces.competitors[:, 0], pieces.competitors[:, 1]] = asked[pieces.competitors[:, 1],
                                                                          pieces.competitors[:, 0]] = JOIN_NEAR
        inner = np.ix_(at, at)
        vector = np.stack([vectors[i] for i in at]) if len(at) else np.empty((0, 1))
        apart = together[inner] | np.eye(len(at), dtype=bool)
        found = cls(name=np.arange(pieces.count), together=together, at=at, vector=vector, count=np.ones(len(at)),
                    asked=asked[inner], apart=apart, over=np.empty(0))
        found.over = np.where(apart, -np.inf, vector @ vector.T - found.asked)
        return found

    def best(self) -> tuple[int, int] | None:
        """Return the rows of the two that are most surely one; None where nothing is left to join."""
        if not self.over.size:
            return None
        i, j = divmod(int(self.over.argmax()), len(self.over))
        return (min(i, j), max(i, j)) if self.over[i, j] >= 0 else None

    def join(self, i: int, j: int) -> None:
        """Make row `j` part of row `i`."""
        self.name[self.name == self.name[self.at[j]]] = self.name[self.at[i]]
        self.vector[i] = mean_vector(np.stack([self.count[i] * self.vector[i], self.count[j] * self.vector[j]]))
        self.count[i] += self.count[j]
        self.apart[i] |= self.apart[j]
        self.apart[:, i] = self.apart[i]
        self.apart[j] = self.apart[:, j] = True
        self.asked[i] = self.asked[:, i] = np.minimum(self.asked[i], self.asked[j])
        self.over[i] = self.over[:, i] = np.where(self.apart[i], -np.inf, self.vector @ self.vector[i] - self.asked[i])
        self.over[j] = self.over[:, j] = -np.inf


# Persons by the places of their faces alone, for nets without an identity vector.

MIN_RETURN = 5
"""Frames that a track must have to count as a person come back; shorter ones are mostly no faces."""
MIN_RETURN_AREA = 0.2
"""Area, as a share of the main track's, under which a face that appears later is somebody in the background."""


def group_by_position(pieces: Tracklets) -> list[Ints]:
    """Return the pieces of each person, the heaviest person (area x score) first.

    Notes
    -----
    Pieces that overlap makes one are one. Where a person is absent, another track may be the same person again, unless
    it was ever on screen together with a track of theirs, or continues one that was. Without a look at the face
    that is a guess, which errs towards frames without a person. It begins with the heaviest track, and again with the
    heaviest of those that are left.
    """
    name = np.arange(pieces.count)
    for before, after in pieces.links:  # sorted: what goes before has its name already
        name[after] = name[before]
    tracks, track = np.unique(name, return_inverse=True)
    left = np.arange(len(tracks))
    person = np.arange(len(tracks))
    while len(left):
        inside = np.isin(track[pieces.tracklet], left)
        number = np.searchsorted(left, track[pieces.tracklet[inside]])
        mine = left[choose_person(pieces.frame[inside], pieces.faces[inside], number)]
        person[mine] = mine[0]
        left = np.setdiff1d(left, mine)
    return heaviest_first(person[track], pieces.weight())


def choose_person(frame: Ints, faces: Floats, track: Ints) -> Ints:
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


# One person of a clip: a box a frame where there is one.

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


def build_persons(pieces: Tracklets, vectors: Mapping[int, Floats] | None = None) -> list[Person]:
    """Return the people of a clip, the main person (largest sum of area x score) first; nobody is one of no frame.

    Parameters
    ----------
    vectors : identity vectors (D,) of the pieces that were looked at; None where there is no net that tells people
        apart, so that places alone decide.
    """
    members = group_by_position(pieces) if vectors is None else cluster_tracklets(pieces, vectors)
    return [person_of(pieces, mine) for mine in members or [np.empty(0, np.int64)]]


def person_of(pieces: Tracklets, members: Ints) -> Person:
    """Return the person that these pieces are; nobody where there are none."""
    boxes, score = np.full((pieces.frames, 4), np.nan), np.full(pieces.frames, np.nan)
    track = np.full(pieces.frames, NONE, np.int64)
    mine = np.isin(pieces.tracklet, members)
    rows = pieces.frame[mine]
    boxes[rows], score[rows], track[rows] = pieces.faces[mine, :4], pieces.faces[mine, 4], pieces.tracklet[mine]
    return Person(boxes=boxes, score=score, track=track)


def left_and_right(people: Sequence[Person]) -> tuple[Person, Person]:
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
