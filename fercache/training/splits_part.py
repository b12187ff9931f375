"""Who learns from whom: the folds, and within each fold's training groups the part that watches a member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fercache.config import TrainConfig
from fercache.data import folds
from fercache.data.base import Trial

MIN_PARTS = 2
WATCH_SHARE = 0.2
"""Share of a fold's training groups kept aside to choose the epoch by."""


class Splits:
    """Folds by group, and parts by group within them.

    Attributes
    ----------
    fold : (N,) int16, the fold that holds each trial out, -1 in none.
    k : how many folds.
    epochs_fixed : whether there are too few groups to choose an epoch by.
    parted : whether in each fold the training groups fall into parts, so that each can be told by members that did not
        learn from it.
    """

    def __init__(self, trials: Sequence[Trial], counts: NDArray[np.int64], config: TrainConfig) -> None:
        training = np.array([t.split in config.learns_from for t in trials])
        counts = counts * training[:, None]
        self.groups = [t.group if one else "" for t, one in zip(trials, training, strict=True)]
        self.fold = np.where(training, folds.assign(self.groups, counts, config.folds, config.seed), -1
                             ).astype(np.int16)
        self.k = int(self.fold.max()) + 1
        learnt = {g for g, f in zip(self.groups, self.fold, strict=True) if f >= 0}
        self.epochs_fixed = len(learnt) < folds.MIN_GROUPS_TO_CHOOSE
        self._part = [self._parts_of(k, counts, config) for k in range(self.k)]
        self.parted = all(self.parts(k) >= MIN_PARTS for k in range(self.k))

    def _parts_of(self, k: int, counts: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int16]:
        """Return the part of each of the fold's training trials, (N,), -1 elsewhere."""
        inside = np.flatnonzero((self.fold >= 0) & (self.fold != k))
        names = [self.groups[i] for i in inside]
        seed = config.seed * 1000 + k
        part = np.full(len(self.fold), -1, np.int16)
        if config.members == 1:
            watch = folds.inner(names, WATCH_SHARE, seed)
            part[inside] = [0 if name in watch else 1 for name in names]
        elif len(set(names)) < MIN_PARTS:
            part[inside] = 0
        else:
            part[inside] = folds.assign(names, counts[inside], config.members, seed)
        return part

    def parts(self, k: int) -> int:
        """Return how many parts a fold's training groups fall into."""
        return int(self._part[k].max()) + 1

    def part(self, k: int, part: int) -> list[int]:
        """Return the trials of a part."""
        return [int(i) for i in np.flatnonzero(self._part[k] == part)]

    def outside(self, k: int) -> list[int]:
        """Return the trials that a fold's members never learn from: those held out, and those of no fold."""
        return [int(i) for i in np.flatnonzero((self.fold < 0) | (self.fold == k))]

    def of(self, k: int, member: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the trials that a member learns from, and those that it is watched by (none: its epochs are fixed)."""
        inside = np.flatnonzero(self._part[k] >= 0)
        if self.parts(k) < MIN_PARTS:
            return tuple(map(int, inside)), ()
        own = self._part[k][inside] == member % self.parts(k)
        train, watch = tuple(map(int, inside[~own])), tuple(map(int, inside[own]))
        return train, () if self.epochs_fixed else watch
