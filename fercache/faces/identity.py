"""Persons of a clip: tracklets joined by their identity vectors, or by position where the CNN has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fercache.faces.tracklets import NONE, Bools, Floats, Ints, Tracklets, apart, area

MAX_CROPS = 5  # most crops of a tracklet that are embedded
MIN_CROPS = 3  # frames from which a tracklet is embedded; a shorter one only if it has a competitor
JOIN = 0.7
"""Least cosine of two tracklets' vectors to join them, wherever they are. Like JOIN_NEAR, measured by
tests/bench/bench_people.py: of 8,644 pairs of two people none was above, of pairs of one person 10 % were below."""
JOIN_NEAR = 0.4  # the same for tracklets that may continue each other by position: few others compete there
SMALL_PX = 40  # faces with a smaller mean side are too blurred to be recognized by the vector alone
MAX_TRACKLETS = 3000
"""Most tracklets that are compared, the heaviest first: the comparison takes memory and time of its square."""


def crops_to_embed(tracklets: Tracklets) -> Ints:
    """Return which faces to embed, (K,) indices of `tracklets.faces` in the order of their frames."""
    # None where fewer than two tracklets qualify. Up to MAX_CROPS a tracklet: it is cut into that many parts, and each
    # part gives the face with the largest area x score.
    sizes, competes = tracklets.sizes(), np.zeros(tracklets.count, bool)
    competes[tracklets.competitors.ravel()] = True
    wanted = np.flatnonzero((sizes >= MIN_CROPS) | competes)
    if len(wanted) < 2:  # nothing to compare with, so the CNN need not run
        return np.empty(0, np.int64)
    wanted = wanted[np.argsort(-tracklets.weight()[wanted], kind="stable")[:MAX_TRACKLETS]]
    faces_of = np.split(np.argsort(tracklets.tracklet, kind="stable"), sizes.cumsum()[:-1])
    best = area(tracklets.faces) * tracklets.faces[:, 4]
    chosen = [part[best[part].argmax()] for number in wanted
              for part in np.array_split(faces_of[number], min(MAX_CROPS, sizes[number]))]
    return np.sort(np.array(chosen, np.int64))


def mean_vector(vectors: Floats) -> Floats:
    """Return the mean (D,) of identity vectors (n, D), scaled to length 1."""
    mean = vectors.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))  # opposite vectors have a mean of length 0


def cluster_tracklets(tracklets: Tracklets, vectors: Mapping[int, Floats]) -> list[Ints]:
    """Return the tracklets of each person, the heaviest first; `vectors`: tracklet -> (D,) of length 1, if embedded."""
    # Agglomerative clustering: the pair whose cosine exceeds its threshold most is joined first, its mean vector stands
    # for both, and so on. Two tracklets that share a frame are never joined. A tracklet without a vector is joined to
    # the one that it continues by overlap.
    clusters = _Clusters(tracklets, vectors)
    while (pair := clusters.best_pair()) is not None:
        clusters.join(*pair)
    label = clusters.label
    for before, after in tracklets.links:
        if after not in vectors or before not in vectors:
            a, b = label[before], label[after]
            if a != b and not clusters.together[np.ix_(label == a, label == b)].any():
                label[label == b] = a
    return heaviest_first(label, tracklets.weight())


def heaviest_first(label: Ints, weight: Floats) -> list[Ints]:
    """Return the members of each label, (n,) each; largest sum of weights first, ties in the order of the labels."""
    total = np.bincount(label, weight, minlength=len(label))
    return [np.flatnonzero(label == i) for i in np.argsort(-total, kind="stable") if (label == i).any()]


class _Clusters:
    """Tracklets while they are joined; at first each is a cluster of its own."""

    def __init__(self, tracklets: Tracklets, vectors: Mapping[int, Floats]) -> None:
        self.label = np.arange(tracklets.count)  # (S,) the tracklet that represents each tracklet's person
        self.together = tracklets.together()  # (S, S) whether two single tracklets share a frame
        threshold = np.full((tracklets.count, tracklets.count), JOIN)
        small = tracklets.size() < SMALL_PX
        threshold[small] = threshold[:, small] = np.inf
        first, second = tracklets.competitors.T
        # After the line on small faces: a small face may still continue a competitor, since position supports it.
        threshold[first, second] = threshold[second, first] = JOIN_NEAR
        # (V,) the tracklets with a vector. The fields below have a row for each of them; a joined person uses the row
        # of one of its tracklets.
        self.embedded = np.array(sorted(vectors), np.int64)
        inner = np.ix_(self.embedded, self.embedded)
        # (V, D) and (V,) mean vector, and the number of tracklets that it averages.
        self.vector = np.stack([vectors[i] for i in self.embedded]) if vectors else np.empty((0, 1))
        self.count = np.ones(len(self.embedded))
        self.threshold = threshold[inner]  # (V, V) least cosine to join the two
        # (V, V) whether the two must stay apart, because they share a frame or because the row is used up.
        self.disjoint = self.together[inner] | np.eye(len(self.embedded), dtype=bool)
        # (V, V) cosine minus threshold.
        self.excess = np.where(self.disjoint, -np.inf, self.vector @ self.vector.T - self.threshold)

    def best_pair(self) -> tuple[int, int] | None:
        """Return the rows of the pair with the largest excess; None where no pair reaches its threshold."""
        if not self.excess.max(initial=-np.inf) >= 0:  # also with a NaN in a vector
            return None
        i, j = sorted(divmod(int(self.excess.argmax()), len(self.excess)))
        return i, j

    def join(self, i: int, j: int) -> None:
        """Merge row `j` into row `i`."""
        self.label[self.label == self.label[self.embedded[j]]] = self.label[self.embedded[i]]
        self.vector[i] = mean_vector(np.stack([self.count[i] * self.vector[i], self.count[j] * self.vector[j]]))
        self.count[i] += self.count[j]
        self.disjoint[i] |= self.disjoint[j]
        self.disjoint[:, i] = self.disjoint[i]
        self.disjoint[j] = self.disjoint[:, j] = True  # row j is used up and must never be the best pair again
        self.threshold[i] = self.threshold[:, i] = np.minimum(self.threshold[i], self.threshold[j])
        cosine = self.vector @ self.vector[i]
        self.excess[i] = self.excess[:, i] = np.where(self.disjoint[i], -np.inf, cosine - self.threshold[i])
        self.excess[j] = self.excess[:, j] = -np.inf


# Persons by the positions of their faces only, for CNNs without an identity vector.

MIN_RETURN = 5  # frames from which a track may be a person who returns; shorter ones are mostly false detections
MIN_RETURN_AREA = 0.2
"""Fraction of the main track's mean area below which a face that appears later is somebody in the background."""


def group_by_position(tracklets: Tracklets) -> list[Ints]:
    """Return the tracklets of each person, the heaviest person (area x score) first."""
    # Linked tracklets form one track. While a person is absent, another track may be the same person again, unless it
    # was on screen together with one of their tracks, or begins closer to such a track. Position alone cannot confirm
    # this, so the rule prefers frames without a person to frames of the wrong person. It starts with the heaviest
    # track, then again with the heaviest of the remaining tracks.
    label = np.arange(tracklets.count)
    for before, after in tracklets.links:  # sorted, so `before` already has its final label
        label[after] = label[before]
    tracks, track = np.unique(label, return_inverse=True)
    remaining = np.arange(len(tracks))
    person = np.arange(len(tracks))
    while len(remaining):
        inside = np.isin(track[tracklets.tracklet], remaining)
        number = np.searchsorted(remaining, track[tracklets.tracklet[inside]])
        members = remaining[choose_person(tracklets.frame[inside], tracklets.faces[inside], number)]
        person[members] = members[0]
        remaining = np.setdiff1d(remaining, members)
    return heaviest_first(person[track], tracklets.weight())


def choose_person(frame: Ints, faces: Floats, track: Ints) -> Ints:
    """Return the numbers of the main person's tracks; arguments of every face: row (M,), face (M, 5), track (M,)."""
    count = int(track.max()) + 1
    order = np.argsort(track, kind="stable")
    edges = np.searchsorted(track[order], np.arange(count + 1))
    begins, ends = order[edges[:-1]], order[edges[1:] - 1]  # the first and the last face of each track
    start, stop, lengths, covered = frame[begins], frame[ends], np.diff(edges), area(faces)
    by_weight = np.argsort(-np.bincount(track, covered * faces[:, 4], count), kind="stable")
    size = np.bincount(track, covered, count) / lengths
    main = by_weight[0]
    may_return = (lengths >= MIN_RETURN) & (size >= MIN_RETURN_AREA * size[main])
    may_return[main] = True
    members, others = np.zeros((2, count), bool)
    for candidate in by_weight[may_return[by_weight]]:
        if others.any():
            # Distance from where each track ended to where this one begins; the other way round for later tracks.
            later = (start > stop[candidate])[:, None]
            distance = apart(np.where(later, faces[begins, :4], faces[ends, :4]),
                             np.where(later, faces[ends[candidate], :4], faces[begins[candidate], :4]))
            if others[candidate] or distance[members].min() > distance[others].min():
                continue
        members[candidate] = True
        others |= (start <= stop[candidate]) & (stop >= start[candidate]) & ~members
    return np.flatnonzero(members)


# A person's boxes, frame by frame.

@dataclass(frozen=True, kw_only=True)
class Person:
    """One person of a clip of T frames."""

    boxes: Floats  # (T, 4) x1, y1, x2, y2 in pixels, NaN in frames without the person
    score: Floats  # (T,) the detector's score, NaN there
    track: Ints  # (T,) number of the box's tracklet, -1 there
    # (T, 10) x and y of each landmark in pixels, NaN there; (T, 0) if they were not detected.
    points: Floats = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def seen(self) -> Bools:
        """Whether there is a box, (T,)."""
        return np.asarray(self.track != NONE)


def build_persons(tracklets: Tracklets, vectors: Mapping[int, Floats] | None = None) -> list[Person]:
    """Return the people of a clip, the main person (largest sum of area x score) first.

    `vectors`: identity vectors (D,) of the embedded tracklets; None where the CNN has no identity vector, so that
    position alone decides.
    """
    # A clip without a face has one person, who is in no frame, so that it still has a frame table.
    members_of = group_by_position(tracklets) if vectors is None else cluster_tracklets(tracklets, vectors)
    people = []
    for members in members_of or [np.empty(0, np.int64)]:
        boxes, score = np.full((tracklets.frames, 4), np.nan), np.full(tracklets.frames, np.nan)
        track = np.full(tracklets.frames, NONE, np.int64)
        chosen = np.isin(tracklets.tracklet, members)
        rows = tracklets.frame[chosen]
        boxes[rows], score[rows] = tracklets.faces[chosen, :4], tracklets.faces[chosen, 4]
        track[rows] = tracklets.tracklet[chosen]
        points = np.full((tracklets.frames, tracklets.faces.shape[1] - 5), np.nan)
        points[rows] = tracklets.faces[chosen, 5:]
        people.append(Person(boxes=boxes, score=score, track=track, points=points))
    return people


def left_and_right(people: Sequence[Person]) -> tuple[Person, Person]:
    """Return the left and the right person of a video with two; a single person is both.

    `people`: at least one, the main person first.
    """
    # Compares the first two by their mean position in the frames that show both, or in all frames if none does.
    if len(people) < 2:
        return people[0], people[0]
    first, second = people[:2]
    both = first.seen & second.seen
    position = [(person.boxes[:, 0] + person.boxes[:, 2])[both if both.any() else person.seen].mean()
                for person in (first, second)]
    return (first, second) if position[0] <= position[1] else (second, first)
