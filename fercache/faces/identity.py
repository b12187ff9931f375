"""Persons by their faces: which crops to look at, and which pieces the identity vectors join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fercache.faces.boxes_part import Bools, Floats, Ints, area
from fercache.faces.tracklets import Pieces

MOST_LOOKS = 5
"""Crops that a piece is known by."""
MIN_LOOK = 3
"""Frames from which a piece is looked at; a shorter one only where it may go on with another by its place."""
JOIN = 0.7
"""Cosine of two pieces' vectors from which they are one person, wherever they are: measured, as is JOIN_NEAR, by
tests/bench/bench_people.py; of 8,644 pairs of two people none was above, of pairs of one 10 % below."""
JOIN_NEAR = 0.4
"""The same for pieces that may go on with each other by place, where the others on the spot are compared as well."""
SMALL_PX = 40
"""Faces under this mean side are too blurred to be known again by the vector alone."""
MOST_PIECES = 3000
"""Pieces whose faces are compared, the heaviest first."""


def looks(pieces: Pieces) -> Ints:
    """Return which faces to look at, (K,) places in `pieces.faces`, in the order of their frames; none where that can
    tell nothing.

    Notes
    -----
    Up to MOST_LOOKS a piece: of each part of it in turn the face with the largest area x score.
    """
    held, beside = pieces.held(), np.zeros(pieces.count, bool)
    beside[pieces.near.ravel()] = True
    wanted = np.flatnonzero((held >= MIN_LOOK) | beside)
    if len(wanted) < 2:
        return np.empty(0, np.int64)
    wanted = wanted[np.argsort(-pieces.weight()[wanted], kind="stable")[:MOST_PIECES]]
    order = np.argsort(pieces.piece, kind="stable")
    edges = np.searchsorted(pieces.piece[order], np.arange(pieces.count + 1))
    best = area(pieces.faces) * pieces.faces[:, 4]
    chosen = [part[best[part].argmax()] for number in wanted
              for part in np.array_split(order[edges[number]:edges[number + 1]], min(MOST_LOOKS, held[number]))]
    return np.sort(np.array(chosen, np.int64))


def mean_vector(vectors: Floats) -> Floats:
    """Return the mean (D,) of identity vectors (n, D), of length 1."""
    mean = vectors.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def joined(pieces: Pieces, vectors: Mapping[int, Floats]) -> list[Ints]:
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
    for before, after in pieces.own:
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
    def of(cls, pieces: Pieces, vectors: Mapping[int, Floats]) -> _Groups:
        """Return every piece by itself."""
        at, together = np.array(sorted(vectors), np.int64), pieces.together()
        asked = np.full((pieces.count, pieces.count), JOIN)
        small = pieces.size() < SMALL_PX
        asked[small] = asked[:, small] = np.inf
        asked[pieces.near[:, 0], pieces.near[:, 1]] = asked[pieces.near[:, 1], pieces.near[:, 0]] = JOIN_NEAR
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
